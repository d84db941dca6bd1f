"""Which bytes of a chunk one of several connections carries: pieces in turn, so that all of them are busy while one reader takes them.

piece       0    1    2    3    4    5   ...
connection  0    1    0    1    0    1        of two
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MAX_STRIPES = 8
MIN_PIECE_NBYTES = 4 << 10  # smaller ones would cost more calls than they are worth


@dataclass(frozen=True)
class Share:
    """Every piece whose number leaves `index` when divided by `count`."""

    index: int
    count: int
    piece_nbytes: int

    def of(self, index: int) -> Share:
        """Return another share of the same chunk."""
        return Share(index, self.count, self.piece_nbytes)

    @property
    def told(self) -> tuple[int, int, int]:
        """The three numbers, as they travel."""
        return self.index, self.count, self.piece_nbytes

    def pieces(self, nbytes: int) -> Iterator[tuple[int, int]]:
        """Iterate over where its pieces of a chunk of `nbytes` begin and end."""
        size = self.piece_nbytes
        return ((at, min(at + size, nbytes)) for at in range(self.index * size, nbytes, self.count * size))

    def nbytes(self, nbytes: int) -> int:
        """Return how many bytes of a chunk of `nbytes` it has."""
        return sum(end - at for at, end in self.pieces(nbytes))
