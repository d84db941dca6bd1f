"""What a worker is thought to hold in device memory, as far as its answers told."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from kvworker.route.choose import PassageKey

MOST_PASSAGES = 16_384


class Holdings:
    """Passages of one worker, the least recently used of which leave first, as they do there. Not thread-safe.

    Parameters
    ----------
    capacity_bytes : int
        What the worker's device tier holds.
    most_passages : int
        Bound of the memory that this takes.
    """

    def __init__(self, capacity_bytes: int, most_passages: int = MOST_PASSAGES) -> None:
        self._capacity_bytes, self._most_passages = capacity_bytes, most_passages
        self._nbytes: OrderedDict[PassageKey, int] = OrderedDict()
        self._used_bytes = 0

    @property
    def free_bytes(self) -> int:
        """Room for more before anything has to leave."""
        return self._capacity_bytes - self._used_bytes

    def of(self, wanted: Iterable[PassageKey]) -> dict[PassageKey, int]:
        """Return those of these passages that are held, with their bytes."""
        return {key: self._nbytes[key] for key in wanted if key in self._nbytes}

    def add(self, passages: Mapping[PassageKey, int]) -> None:
        """Note that passages were used and are held now; what is larger than everything is not."""
        for key, nbytes in passages.items():
            self._remove(key)
            if nbytes <= self._capacity_bytes:
                self._nbytes[key] = nbytes
                self._used_bytes += nbytes
        while self._used_bytes > self._capacity_bytes or len(self._nbytes) > self._most_passages:
            self._remove(next(iter(self._nbytes)))

    def clear(self) -> None:
        """Forget everything: the worker started anew."""
        self._nbytes.clear()
        self._used_bytes = 0

    def _remove(self, key: PassageKey) -> None:
        self._used_bytes -= self._nbytes.pop(key, 0)
