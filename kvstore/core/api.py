"""StoreAPI: the service interface and the transport interface in one, so embedded and remote differ in nothing above it.

An implementation is bound to one tenant: `StoreService.bind(tenant)` in the server's process, a gRPC channel with that tenant's token
elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from kvstore.core.blob import Buffer
from kvstore.core.key import ChunkKey
from kvstore.core.manifest import Manifest


class Status(Enum):
    """What a lookup found."""

    READY = "ready"
    PENDING = "pending"  # being written; it may be ready soon
    ABSENT = "absent"


@dataclass(frozen=True)
class Hit:
    """What the store knows about one chunk key.

    `tier` is the fastest tier that holds the chunk and `nbytes` its blob's size; both are empty unless READY. `reason` says why a
    chunk is absent: "never_stored", "variant" (stored in another codec), "evicted", "epoch", "corrupt", "timeout", "breaker" (what did not
    answer before is not asked now), "unavailable" or "deleted".
    """

    key: ChunkKey
    status: Status
    tier: str = ""
    nbytes: int = 0
    reason: str = ""


@dataclass(frozen=True)
class PutNote:
    """What the writer says about a chunk besides its bytes.

    Parameters
    ----------
    source : str
        A name the chunk came from, such as a document's path; `invalidate` by source takes it back.
    recompute_s : float
        Seconds that computing the chunk took: what eviction by value weighs.
    durable : bool
        Acknowledge only after a tier that survives a restart has it.
    """

    source: str = ""
    recompute_s: float = 0.0
    durable: bool = False


@dataclass(frozen=True)
class PutReceipt:
    """What became of a put: `stored` is False when an equal chunk was there first, which is as good."""

    key: ChunkKey
    stored: bool
    tier: str
    nbytes: int
    is_durable: bool


@dataclass(frozen=True)
class Scope:
    """What to invalidate: kind "tenant" (value ignored: one's own), "model" (namespace in hex) or "source" (its name)."""

    kind: str
    value: str = ""


@dataclass(frozen=True)
class Entry:
    """One stored chunk in a listing."""

    key: ChunkKey
    kind: str
    n_tokens: int
    nbytes: int
    codec: str
    tiers: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class TierStats:
    """One tier's use."""

    name: str
    used_bytes: int
    capacity_bytes: int
    entries: int
    is_available: bool
    is_durable: bool


@dataclass(frozen=True)
class StoreStats:
    """Counters since the start (`hits`, `misses`, `quarantined`, ...) and the tiers from fast to slow."""

    counters: Mapping[str, float]
    tiers: tuple[TierStats, ...]


@dataclass(frozen=True)
class Explanation:
    """Why a chunk is or is not served: the hit, the epochs that its key was made with, and one line per tier."""

    hit: Hit
    tenant_epoch: int
    model_epoch: int
    lines: tuple[str, ...] = field(default=())


class BlobReader(Protocol):
    """A chunk being read. Parts may still be on the way; each is verified before it is handed out."""

    @property
    def manifest(self) -> Manifest:
        """The verified manifest."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the whole blob."""
        ...

    @property
    def tier(self) -> str:
        """The tier it comes from."""
        ...

    def part(self, index: int) -> memoryview:
        """Return part `index`; blocks until it is there. Raises CorruptError, DeadlineError or TierUnavailableError."""
        ...

    def close(self) -> None:
        """Stop reading and free what the read holds."""
        ...


class StoreAPI(Protocol):
    """Everything that can be asked of a store, for one tenant. Thread-safe."""

    def lookup(self, keys: Sequence[ChunkKey], lease_s: float = 0.0, timeout_s: float | None = None) -> list[Hit]:
        """Return one hit per key, in order. READY chunks are protected from eviction for `lease_s` seconds.

        Without an answer within `timeout_s`, None for the store's own, it raises DeadlineError or TierUnavailableError.
        """
        ...

    def get(self, key: ChunkKey, timeout_s: float | None = None) -> BlobReader | None:
        """Open a chunk; None is a miss. Every byte is verified before it is handed out; a damaged copy is quarantined and counted."""
        ...

    def get_batch(self, keys: Sequence[ChunkKey], timeout_s: float | None = None) -> list[BlobReader | None]:
        """Open several chunks in one round trip, in the order of the keys; None is a miss. Read them in that order, or all at once."""
        ...

    def put(self, blob: Buffer, note: PutNote) -> PutReceipt:
        """Verify and publish a whole blob. First writer wins; raises FormatError, CorruptError or CapacityError and stores nothing."""
        ...

    def delete(self, keys: Sequence[ChunkKey]) -> int:
        """Remove chunks from every tier; return how many were there."""
        ...

    def invalidate(self, scope: Scope) -> int:
        """Make everything in the scope a miss at once; return the scope's new epoch."""
        ...

    def entries(self, limit: int = 1000) -> Iterator[Entry]:
        """Iterate over at most `limit` stored chunks, most recently used first."""
        ...

    def stats(self) -> StoreStats:
        """Return counters and tier use."""
        ...

    def explain(self, key: ChunkKey) -> Explanation:
        """Say why a chunk is or is not served."""
        ...

    def close(self) -> None:
        """Let go of the store; an embedded one flushes what is acknowledged."""
        ...
