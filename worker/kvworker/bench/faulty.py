"""A store that fails in the middle of a transfer, below the checks that every reader makes."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from itertools import count

from kvstore.core.api import BlobReader, PutNote, PutReceipt, StoreAPI
from kvstore.core.blob import Buffer, key_of, parse_header
from kvstore.core.errors import TierUnavailableError
from kvstore.core.key import ChunkKey
from kvstore.core.landing import Landing
from kvstore.core.reading import PartReader
from kvworker.bench.throttled import Link, ThrottledStore

KINDS = ("kill", "stall", "garbage", "cut")
_PIECE_NBYTES = 256 << 10
_LONGEST_S = 20.0


@dataclass(frozen=True)
class Fault:
    """What goes wrong: in the transfer of the `nth` chunk that is asked for, behind the share `at` of its bytes.

    "kill" ends all transfers from then on, "cut" this one; "garbage" flips every bit that is left; "stall" waits for `is_over`.
    """

    kind: str
    nth: int
    at: float
    is_over: threading.Event = field(default_factory=threading.Event)


class FaultyStore(ThrottledStore):
    """Keeps a copy of every chunk that is put by it, and hands out transfers of those, one of which goes wrong."""

    def __init__(self, store: StoreAPI, bytes_per_s: float) -> None:
        super().__init__(store, bytes_per_s)
        self._blobs: dict[ChunkKey, bytes] = {}
        self.strike(None)

    def strike(self, fault: Fault | None) -> None:
        """Choose what goes wrong from now on, None for nothing; the store is alive again."""
        self._fault, self.is_dead, self._numbers = fault, False, count()

    def put(self, blob: Buffer, note: PutNote) -> PutReceipt:
        """Keep a copy and pass on."""
        self._blobs[key_of(parse_header(blob).manifest)] = bytes(blob)
        return super().put(blob, note)

    def get(self, key: ChunkKey, timeout_s: float | None = None) -> BlobReader | None:
        """Open a transfer."""
        if self.is_dead:
            raise TierUnavailableError("the store is dead")
        fault = self._fault if self._fault and next(self._numbers) == self._fault.nth else None
        return PartReader(_Transfer(self._blobs[key], fault, self, self._link), key, self.tier)


class _Transfer(Landing):
    """A transfer that may go wrong."""

    def __init__(self, blob: bytes, fault: Fault | None, store: FaultyStore, link: Link) -> None:
        super().__init__(memoryview(bytearray(len(blob))))
        self._blob, self._fault, self._store, self._link = blob, fault, store, link
        self._strikes_at = int(fault.at * len(blob)) if fault else len(blob)

    def _receive(self, room: memoryview) -> int:
        """Carry a piece over, none beyond the place where the fault strikes."""
        begin = self.nbytes - room.nbytes
        if self._fault and begin >= self._strikes_at:
            return self._go_wrong(self._fault, begin, room)
        end = min(begin + _PIECE_NBYTES, self._strikes_at)
        self._link.carry(end - begin)
        room[: end - begin] = self._blob[begin:end]
        return end - begin

    def _go_wrong(self, fault: Fault, begin: int, room: memoryview) -> int:
        if fault.kind == "garbage":
            room[:] = bytes(255 - byte for byte in self._blob[begin:])
            return room.nbytes
        if fault.kind == "stall":
            fault.is_over.wait(_LONGEST_S)
        self._store.is_dead = fault.kind == "kill"
        raise TierUnavailableError(f"{fault.kind} at byte {begin}")
