"""Where the rows of a prompt stand, and which rows before it each one sees: one after the other, apart, or side by side.

three passages and a question        0 1 2 | 3 4 | 5 6 7 | 8 9     rows
one after the other                  0 1 2   3 4   5 6 7   8 9     positions; each row sees all rows before it
apart                                0 1 2   3 4   5 6 7   8 9     rows 5 to 7 see only each other, rows 8 and 9 see all
side by side                         0 1 2   0 1   0 1 2   3 4     as apart; the passages share one range of positions
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvstore.core.errors import InvalidInputError
from kvworker.engine.engine import Parallel, Segment, Span, spans_of


@dataclass(frozen=True)
class SideBySide:
    """Segments that share one range of positions: rows start to stop - 1, of which the longest segment has `longest`.

    Where all segments begin with the same token, as with a BOS of their own, that of the first is their shared prefix: rows before `first`
    are not weighed. Later rows do not see its `copies`, the first rows of the other segments.
    """

    start: int
    stop: int
    first: int
    longest: int
    copies: tuple[int, ...]
    weights: Parallel


@dataclass(frozen=True)
class Arrangement:
    """Where rows stand and what they see; rows behind the prompt, which are generated, follow its end.

    `lows` has for each row the first row that it sees; empty where all rows see all.
    """

    lows: tuple[int, ...] = ()
    side_by_side: SideBySide | None = None

    def low(self, row: int) -> int:
        """Return the first row that a row sees."""
        return self.lows[row] if row < len(self.lows) else 0

    def position(self, row: int) -> int:
        """Return where a row stands."""
        shared = self.side_by_side
        if shared is None or row < shared.start:
            return row
        return shared.start + (row - self.lows[row] if row < shared.stop else row - shared.stop + shared.longest)

    def n_positions(self, n_rows: int) -> int:
        """Return how many positions a sequence of n_rows reaches over."""
        shared = self.side_by_side
        return max(self.position(n_rows - 1) + 1, shared.start + shared.longest if shared else 0)


IN_TURN = Arrangement()
"""One segment after the other, each of which sees all before it."""


def arrangement_of(segments: Sequence[Segment]) -> Arrangement:
    """Return how a prompt's segments ask to stand; what cannot be met raises InvalidInputError."""
    if not any(segment.apart for segment in segments):
        return IN_TURN
    spans = spans_of(segments)
    lows = [s.start if segment.apart else 0 for segment, s in zip(segments, spans, strict=True) for _ in range(s.start, s.stop)]
    return Arrangement(tuple(lows), _side_by_side(segments, spans))


def _side_by_side(segments: Sequence[Segment], spans: Sequence[Span]) -> SideBySide | None:
    """Return the segments that share positions; None without any."""
    weights = [segment.apart for segment in segments if isinstance(segment.apart, Parallel)]
    if not weights:
        return None
    own = [i for i, segment in enumerate(segments) if isinstance(segment.apart, Parallel)]
    if own[-1] - own[0] + 1 != len(own) or len(set(weights)) > 1:
        raise InvalidInputError("segments that share positions must be neighbours with one temperature and one scale")
    longest = max(spans[i].stop - spans[i].start for i in own)
    begin_alike = len({segments[i].token_ids[0] for i in own}) == 1
    copies = tuple(spans[i].start for i in own[1:]) if begin_alike else ()
    start = spans[own[0]].start
    return SideBySide(start, spans[own[-1]].stop, start + begin_alike, longest, copies, weights[0])
