"""What one tenant asked of a store and what it got, and its latest misses."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kvstore.core.api import Hit, Status
from kvstore.core.calling import request_id
from kvstore.core.key import ChunkKey
from kvstore.store.counters import Counters
from kvstore.store.results import Opened

HIT, PENDING = "hit", "pending"
LOOKUP, GET = "lookup", "get"
KEPT_MISSES = 256  # of each tenant
_GOT, _OUT = f"{GET}.{HIT}", "out_bytes"


@dataclass(frozen=True)
class MissNote:
    """One miss: when (seconds since 1970), in which request ("" where none was named), in a "lookup" or "get", of which chunk, and why."""

    at_s: float
    request_id: str
    call: str
    key: ChunkKey
    reason: str


class Tally:
    """Counters `lookup.<outcome>`, `get.<outcome>`, `out_bytes`, `puts` and `in_bytes` of one tenant. Thread-safe.

    An outcome is "hit", "pending" or the reason of a miss. A lookup counts texts and not keys: one that is stored in any of the codecs
    that were asked for is a hit. `misses` are the latest ones, `unsorted` those that nobody has looked at yet.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.counters = Counters()
        self.misses: deque[MissNote] = deque(maxlen=KEPT_MISSES)
        self.unsorted: deque[MissNote] = deque(maxlen=KEPT_MISSES)
        self._clock = clock

    def looked_up(self, hits: Sequence[Hit]) -> None:
        """Count what a lookup found."""
        best: dict[bytes, Hit] = {}
        for hit in hits:
            before = best.get(hit.key.content)
            if before is None or _RANK[hit.status] > _RANK[before.status]:
                best[hit.key.content] = hit
        self.counters.add_all((f"{LOOKUP}.{_outcome(hit)}", 1) for hit in best.values())
        self._note(LOOKUP, (hit for hit in best.values() if hit.status is Status.ABSENT))

    def read(self, opened: Opened | Hit) -> None:
        """Count what a get found."""
        if isinstance(opened, Opened):
            self.counters.add_all(((_GOT, 1), (_OUT, opened.landing.nbytes)))
            return
        self.counters.add(f"{GET}.{_outcome(opened)}")
        if opened.status is Status.ABSENT:
            self._note(GET, (opened,))

    def read_in_place(self, n_reads: int, nbytes: int) -> None:
        """Count reads that a client made by itself in shared memory."""
        self.counters.add_all(((_GOT, n_reads), (_OUT, nbytes)))

    def put(self, nbytes: int) -> None:
        """Count a put."""
        self.counters.add_all((("puts", 1), ("in_bytes", nbytes)))

    def take_unsorted(self) -> list[MissNote]:
        """Return the misses since the last time, the latest 256 of them."""
        taken = []
        while self.unsorted:
            taken.append(self.unsorted.popleft())
        return taken

    def _note(self, call: str, missed: Iterable[Hit]) -> None:
        """Keep misses for whoever asks why."""
        now, request = self._clock(), request_id()
        for hit in missed:
            note = MissNote(now, request, call, hit.key, hit.reason)
            self.misses.append(note)
            self.unsorted.append(note)


_RANK = {Status.ABSENT: 0, Status.PENDING: 1, Status.READY: 2}


def _outcome(hit: Hit) -> str:
    """Return what a hit is counted as."""
    return HIT if hit.status is Status.READY else PENDING if hit.status is Status.PENDING else hit.reason
