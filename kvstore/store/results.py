"""What the tiered store answers, and how it is set."""

from __future__ import annotations

from dataclasses import dataclass

from kvstore.core.api import Status
from kvstore.core.errors import ConfigError
from kvstore.core.landing import Landing
from kvstore.store.record import RecordMeta
from kvstore.store.tier import Room


@dataclass(frozen=True)
class Found:
    """What a lookup found under one storage key.

    `tier` is the fastest tier that holds the record, `nbytes` its blob's size and `meta` its meta; all are empty unless READY. Of a record
    that only a remote tier has, `meta` is None and `nbytes` counts its head too. `reason` tells why it is ABSENT: "never_stored",
    "evicted", "corrupt", "timeout", "breaker", "unavailable" or "deleted".
    """

    status: Status
    tier: str = ""
    nbytes: int = 0
    reason: str = ""
    meta: RecordMeta | None = None


@dataclass(frozen=True)
class Opened:
    """A record being read: its blob lands in `landing`, not verified yet; `tier` is where it comes from."""

    storage_key: bytes
    meta: RecordMeta
    landing: Landing
    tier: str


@dataclass(frozen=True)
class Draft:
    """A record being written.

    `view` is all of it, head included, and `blob` what stands behind the head; `room` is the block of the memory tier that it lies in, or
    None. A commit takes both views away: nothing can be written through them into what others read.
    """

    storage_key: bytes
    meta: RecordMeta
    view: memoryview
    blob: memoryview
    room: Room | None

    def seal(self) -> None:
        """Take the memory away from whoever filled it. Safe to call again."""
        self.blob.release()
        self.view.release()


@dataclass(frozen=True)
class Miss:
    """No record, and why; the reasons are those of `Found`."""

    reason: str


@dataclass(frozen=True)
class Stored:
    """What became of a put: `stored` is False when a record was there first. `tier` is the fastest that has it; `nbytes` is the blob's."""

    stored: bool
    tier: str
    nbytes: int
    is_durable: bool


@dataclass(frozen=True)
class StoredEntry:
    """One record in a listing: `nbytes` is the blob's, `tiers` are the names of the tiers that hold it, fastest first."""

    storage_key: bytes
    meta: RecordMeta
    nbytes: int
    tiers: tuple[str, ...]


@dataclass(frozen=True)
class StoreSettings:
    """How a tiered store behaves; checked when built.

    Parameters
    ----------
    eviction : str
        Name of the policy of every tier that does not evict by itself: a file in `kvstore/store/evict`.
    write_queue_bytes : int
        Most bytes of records that wait for each slower tier. A record that finds the queue full is written by `drain` only.
    remote_timeout_s : float
        Longest wait for a remote tier where the caller gives no timeout, and in a lookup.
    remote_threads : int
        Calls to remote tiers that may be under way at once; more count as unavailable rather than wait.
    max_lease_s : float
        Longest lease a lookup may ask for; longer ones are cut.
    max_blob_nbytes : int
        Largest blob a put accepts.
    remembered_misses : int
        How many gone keys are remembered with the reason.
    """

    eviction: str = "value"
    write_queue_bytes: int = 256 << 20
    remote_timeout_s: float = 0.5
    remote_threads: int = 8
    max_lease_s: float = 60.0
    max_blob_nbytes: int = 1 << 30
    remembered_misses: int = 65536

    def __post_init__(self) -> None:
        for name in ("write_queue_bytes", "remote_timeout_s", "remote_threads", "max_lease_s", "max_blob_nbytes", "remembered_misses"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")
