"""Cut a long document into windows that a model can read at once: pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvstore.core.errors import InvalidInputError


@dataclass(frozen=True)
class Window:
    """Passages `start` to `stop - 1` are read together; those before `first_new` only give context, an earlier window stores them."""

    start: int
    first_new: int
    stop: int


def document_windows(lengths: Sequence[int], limit: int) -> list[Window]:
    """Return windows of at most `limit` tokens that store every passage once, in order.

    A document that fits is one window. A longer one slides: a new window starts with as many of the passages before its first new one
    as fit into half of the limit, so that what was said shortly before stays known. A passage longer than the limit raises
    InvalidInputError.
    """
    for index, length in enumerate(lengths):
        if not 1 <= length <= limit:
            raise InvalidInputError(f"passage {index} has {length} tokens but must have 1 to {limit}; cut it into shorter passages")
    windows, first_new = [], 0
    while first_new < len(lengths):
        start = _reach_back(lengths, first_new, limit)
        used, stop = sum(lengths[start:first_new]), first_new
        while stop < len(lengths) and used + lengths[stop] <= limit:
            used += lengths[stop]
            stop += 1
        windows.append(Window(start, first_new, stop))
        first_new = stop
    return windows


def _reach_back(lengths: Sequence[int], first_new: int, limit: int) -> int:
    """Return where a window starts: as early as half the limit, and room for the first new passage, allow."""
    room, start = min(limit // 2, limit - lengths[first_new]), first_new
    while start > 0 and lengths[start - 1] <= room:
        start -= 1
        room -= lengths[start]
    return start
