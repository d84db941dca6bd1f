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
KEPT_MISSES = 256  # of each tenant


@dataclass(frozen=True)
class MissNote:
    """One miss: when (seconds since 1970), in which request ("" where none was named), of which chunk, and why."""

    at_s: float
    request_id: str
    key: ChunkKey
    reason: str


class Tally:
    """Counters `lookups.<outcome>`, `gets.<outcome>`, `out_bytes`, `puts` and `in_bytes` of one tenant. Thread-safe.

    An outcome is "hit", "pending" or the reason of a miss. A lookup counts texts and not keys: one that is stored in any of the codecs
    that were asked for is a hit.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.counters = Counters()
        self.misses: deque[MissNote] = deque(maxlen=KEPT_MISSES)
        self._clock = clock

    def looked_up(self, hits: Sequence[Hit]) -> None:
        """Count what a lookup found."""
        outcomes: dict[bytes, str] = {}
        for hit in hits:
            if hit.status is not Status.ABSENT:
                outcomes[hit.key.content] = HIT if hit.status is Status.READY else outcomes.get(hit.key.content, PENDING)
            elif hit.key.content not in outcomes:
                outcomes[hit.key.content] = hit.reason
        self.counters.add_all((f"lookups.{outcome}", 1) for outcome in outcomes.values())
        self._note(hit for hit in hits if hit.status is Status.ABSENT and outcomes[hit.key.content] == hit.reason)

    def read(self, opened: Opened | Hit) -> None:
        """Count what a get found."""
        if isinstance(opened, Opened):
            self.counters.add_all((("gets.hit", 1), ("out_bytes", opened.landing.nbytes)))
            return
        self.counters.add(f"gets.{opened.reason or PENDING}")
        if opened.status is Status.ABSENT:
            self._note((opened,))

    def read_in_place(self, n_reads: int, nbytes: int) -> None:
        """Count reads that a client made by itself in shared memory."""
        self.counters.add_all((("gets.hit", n_reads), ("out_bytes", nbytes)))

    def put(self, nbytes: int) -> None:
        """Count a put."""
        self.counters.add_all((("puts", 1), ("in_bytes", nbytes)))

    def _note(self, missed: Iterable[Hit]) -> None:
        """Keep misses for whoever asks why."""
        now, request = self._clock(), request_id()
        self.misses.extend(MissNote(now, request, hit.key, hit.reason) for hit in missed)
