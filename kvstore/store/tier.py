"""One interface for every place that keeps records: memory, disk, Redis, and the wrappers around them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvstore.core.blob import Buffer
from kvstore.core.errors import CapacityError, UnsupportedError
from kvstore.core.landing import Landing
from kvstore.store.record import RecordMeta


@dataclass(frozen=True)
class TierInfo:
    """What a tier is.

    Parameters
    ----------
    name : str
        How reports and counters call it.
    capacity_bytes : int
        The most bytes of records it keeps; 0 when something else limits it and it evicts by itself, as Redis does.
    is_durable : bool
        A record whose `put` returned survives a crash of the machine.
    is_remote : bool
        Calls cross a network: they are made under a deadline, and other servers may add and remove records.
    is_verified : bool
        It is memory of this process, which holds what was verified on its way in.
    """

    name: str
    capacity_bytes: int
    is_durable: bool = False
    is_remote: bool = False
    is_verified: bool = False


@dataclass(frozen=True)
class Listed:
    """One record of a tier: its storage key, its length in bytes, and its meta unless the tier would have to read far for it."""

    key: bytes
    nbytes: int
    meta: RecordMeta | None = None


@dataclass(frozen=True)
class Room:
    """Memory of a tier that a record is written into before anybody sees it; dropping it gives the memory back.

    `view` is writable and as long as the record; `offset` is where the tier keeps it.
    """

    view: memoryview
    offset: int


class Tier(ABC):
    """Keeps records under storage keys of 32 bytes. Thread-safe.

    A tier does not verify chunks: whoever reads parses the record, which verifies it. It does promise that what it returns has the
    length that was stored. Each call may raise TierUnavailableError, or DeadlineError when the tier took too long; a tier never evicts on
    its own unless its capacity is 0.
    """

    @property
    @abstractmethod
    def info(self) -> TierInfo:
        """What this tier is."""

    @property
    @abstractmethod
    def used_bytes(self) -> int:
        """Bytes in use; never more than `info.capacity_bytes` unless that is 0."""

    @property
    def n_resting(self) -> int:
        """How many of the servers behind it are not asked for a while since they did not answer."""
        return 0

    @abstractmethod
    def get(self, key: bytes) -> Landing | None:
        """Begin to read the record; None when it is not here.

        What the landing has received stays valid and unchanged as long as a view of it is held, whatever happens to the record meanwhile.
        This call and every later `fill` raise CorruptError when the tier itself sees that the copy is damaged, and EvictedError when a
        part of it is gone; then the tier has removed the rest.
        """

    @abstractmethod
    def put(self, key: bytes, pieces: Sequence[Buffer]) -> None:
        """Store the pieces joined as one record; the first piece holds the record's whole head.

        The record becomes visible all at once or not at all. A key that is here already keeps its record. Raises CapacityError when it
        does not fit now.
        """

    def reserve(self, nbytes: int) -> Room:
        """Return room for a record that is written in place and then published; raises CapacityError where there is none."""
        raise CapacityError(f"tier {self.info.name} has no memory to write into")

    def publish(self, key: bytes, room: Room) -> None:
        """Make a filled room of this tier the record of `key`; a key that is here already keeps its record."""
        raise UnsupportedError(f"tier {self.info.name} reserves no room")

    @abstractmethod
    def delete(self, key: bytes) -> bool:
        """Remove a record; return whether it was here."""

    @abstractmethod
    def find(self, keys: Sequence[bytes]) -> list[int | None]:
        """Return the record's length in bytes, or None, for each key: one round trip at most."""

    @abstractmethod
    def scan(self) -> Iterator[Listed]:
        """Iterate over the records, in no order; what changes meanwhile may be seen or not."""

    def quarantine(self, key: bytes) -> bool:
        """Take a damaged record out of sight; return whether it was here. Keeps it for inspection only where that is cheap."""
        return self.delete(key)

    @abstractmethod
    def close(self) -> None:
        """Let go of what the tier holds; views handed out stay valid. Safe to call again."""


class WrappedTier(Tier):
    """Passes every call on; a wrapper overrides what it changes."""

    def __init__(self, tier: Tier) -> None:
        self._tier = tier

    @property
    def info(self) -> TierInfo:
        return self._tier.info

    @property
    def used_bytes(self) -> int:
        return self._tier.used_bytes

    @property
    def n_resting(self) -> int:
        return self._tier.n_resting

    def get(self, key: bytes) -> Landing | None:
        return self._tier.get(key)

    def put(self, key: bytes, pieces: Sequence[Buffer]) -> None:
        self._tier.put(key, pieces)

    def reserve(self, nbytes: int) -> Room:
        return self._tier.reserve(nbytes)

    def publish(self, key: bytes, room: Room) -> None:
        self._tier.publish(key, room)

    def delete(self, key: bytes) -> bool:
        return self._tier.delete(key)

    def find(self, keys: Sequence[bytes]) -> list[int | None]:
        return self._tier.find(keys)

    def scan(self) -> Iterator[Listed]:
        return self._tier.scan()

    def quarantine(self, key: bytes) -> bool:
        return self._tier.quarantine(key)

    def close(self) -> None:
        self._tier.close()
