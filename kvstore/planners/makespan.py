"""Give every chunk to one of several lanes that work at once, so that the last lane is done soon: greedy, then moves and swaps.

Makespan on unrelated machines, NP-hard; P2 (lanes are tiers) and P3 (one lane is the device that computes) both end here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

_PATIENCE = 6.0  # 4 to 8 came closest to the optimum over 8 to 512 chunks of 3 kinds
_MOST_PRICE, _MOST_EXPONENT = 1e200, 200.0  # short of overflow
_MOST_SWAPPED = 64  # of more chunks, each is so little of the whole that moves are enough
_LEAST_GAIN = 1e-9  # of the whole: less is rounding, and would let the search run in circles


class Option(NamedTuple):
    """One way to get a chunk: `seconds` of a lane, and `after_s` behind all lanes."""

    lane: int
    seconds: float
    after_s: float = 0.0


def by_price(options: Sequence[Sequence[Option]], order: Sequence[int], n_lanes: int) -> Iterator[tuple[int, Option]]:
    """Yield chunks in this order with the option to take, up to the first chunk that has none.

    The least seconds * exp(busy / _PATIENCE of a chunk): cheap lanes are preferred, but not once they are busier than others by several
    chunks. For many chunks that is within 2 % of the best; for few it is a start.
    """
    sampled = [min(o.seconds for o in found) for found in options[:: 1 + len(options) // 32] if found]
    patience_s = max(_PATIENCE * sum(sampled) / max(len(sampled), 1), 1e-300)
    price = [1.0] * n_lanes
    for chunk in order:
        best, least = None, math.inf
        for option in options[chunk]:
            if (cost := option.seconds * price[option.lane]) < least:
                best, least = option, cost
        if best is None:
            return
        price[best.lane] *= math.exp(min(best.seconds / patience_s, _MOST_EXPONENT))
        if price[best.lane] > _MOST_PRICE:
            price = [p / _MOST_PRICE for p in price]
        yield chunk, best


class Placing:
    """Chunks given to lanes so far: `chosen` holds the option of each, in the order in which they were placed.

    Parameters
    ----------
    options : sequence of sequences of Option
        Every way to get each chunk.
    n_lanes : int
        Lanes count from 0.
    most_tries : int
        Exchanges that `improve` weighs in all its calls.
    chosen : mapping of chunk to Option
        Where chunks are to begin with.
    """

    def __init__(
        self, options: Sequence[Sequence[Option]], n_lanes: int, most_tries: int, chosen: Mapping[int, Option] | None = None
    ) -> None:
        self._options, self._tries_left = options, most_tries
        self.chosen = dict(chosen or {})
        self._busy_s = [0.0] * n_lanes
        self._after_s = 0.0
        for lane, seconds, after_s in self.chosen.values():
            self._busy_s[lane] += seconds
            self._after_s += after_s

    @property
    def seconds(self) -> float:
        """When everything is done."""
        return max(self._busy_s) + self._after_s

    def place(self, chunk: int, option: Option) -> None:
        """Give a chunk to a lane, taking it from another if it has one."""
        old = self.chosen.get(chunk)
        if old is not None:
            self._busy_s[old.lane] -= old.seconds
            self._after_s -= old.after_s
        self.chosen[chunk] = option
        self._busy_s[option.lane] += option.seconds
        self._after_s += option.after_s

    def place_first_done(self, chunk: int, options: Sequence[Option]) -> None:
        """Give a chunk to the lane where it is done first."""
        self.place(chunk, min(options, key=lambda o: self._busy_s[o.lane] + o.seconds + o.after_s))

    def improve(self) -> None:
        """Move chunks off the lane that is done last, or swap two of them, while everything is done sooner by it."""
        while self._tries_left > 0 and (self._move() or (len(self.chosen) <= _MOST_SWAPPED and self._swap())):
            pass

    def _move(self) -> bool:
        """Make the best move of one chunk, and tell whether there was one.

        Chunks of other lanes than the last move only where that saves seconds behind all lanes.
        """
        busy, best, found = self._busy_s, self.seconds * (1 - _LEAST_GAIN), None
        last = busy.index(max(busy))
        others = max((s for lane, s in enumerate(busy) if lane != last), default=0.0)
        for chunk, old in self.chosen.items():
            is_last = old.lane == last
            rest = max(others, busy[last] - old.seconds) if is_last else busy[last]
            for option in self._options[chunk]:
                if option is old or not (is_last or option.after_s < old.after_s):
                    continue
                self._tries_left -= 1
                mine = busy[option.lane] + option.seconds - (old.seconds if option.lane == old.lane else 0.0)
                seconds = (rest if rest > mine else mine) + self._after_s - old.after_s + option.after_s
                if seconds < best:
                    best, found = seconds, (chunk, option)
            if self._tries_left <= 0:
                break
        if found:
            self.place(*found)
        return found is not None

    def _swap(self) -> bool:
        """Make the first exchange of two chunks that helps, and tell whether there was one."""
        last = self._busy_s.index(max(self._busy_s))
        for one, mine in self.chosen.items():
            if mine.lane == last and any(o.lane != last and self._swap_to(one, mine, o) for o in self._options[one]):
                return True
            if self._tries_left <= 0:
                break
        return False

    def _swap_to(self, one: int, mine: Option, option: Option) -> bool:
        """Move chunk `one` from `mine` to `option` and a chunk of that lane to any other, if that helps; tell whether it did."""
        most = self.seconds * (1 - _LEAST_GAIN)
        for other, theirs in self.chosen.items():
            if theirs.lane != option.lane or self._tries_left <= 0:
                continue
            for back in self._options[other]:
                if back.lane == theirs.lane:
                    continue
                self._tries_left -= 1
                if self._exchanged((mine, theirs), (option, back)) < most:
                    self.place(one, option)
                    self.place(other, back)
                    return True
        return False

    def _exchanged(self, old: Sequence[Option], new: Sequence[Option]) -> float:
        """Return when everything would be done with some options exchanged for others."""
        busy, after_s = self._busy_s.copy(), self._after_s
        for option in old:
            busy[option.lane] -= option.seconds
            after_s -= option.after_s
        for option in new:
            busy[option.lane] += option.seconds
            after_s += option.after_s
        return max(busy) + after_s


def largest_first(options: Sequence[Sequence[Option]], chunks: Sequence[int], n_lanes: int, most_tries: int) -> Placing:
    """Return chunks where each is done first, those that take longest at best before the others, improved."""
    placing = Placing(options, n_lanes, most_tries)
    for chunk in sorted(chunks, key=lambda i: -min(o.seconds for o in options[i])):
        placing.place_first_done(chunk, options[chunk])
    placing.improve()
    return placing
