"""What a task family of the shared-context benchmark is: a generator of contexts with five questions each, and a metric.

The families, depths and modes are those of SCBench (arXiv 2412.10319), with generated contexts in place of its data.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

from kvstore.core.discovery import find, known_names
from kvworker.quality.context import Ask, Context, whole

DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
N_PASSAGES = 8
_PACKAGE = "kvworker.quality.tasks"


@dataclass(frozen=True)
class Task(ABC):
    """A family. A context holds `n_items` pieces of text in eight passages; question i is about depth `DEPTHS[i]`."""

    name: ClassVar[str]
    answer_tokens: ClassVar[int]
    """Longest answer that is generated."""
    n_items: int = 12

    @abstractmethod
    def make(self, draw: random.Random) -> Context:
        """Return a context; its questions are ordered by depth."""

    def scaled(self, size: int) -> Task:
        """Return the family over contexts that are `size` times as long."""
        return replace(self, n_items=self.n_items * size)

    @abstractmethod
    def score(self, said: str, answer: str) -> float:
        """Return how right an answer is, 0 to 1."""


def tasks() -> list[Task]:
    """Return every known family at its own size."""
    return [find(_PACKAGE, name)() for name in known_names(_PACKAGE)]


def at_depths(n_items: int) -> list[int]:
    """Return which of n_items lies at each depth."""
    return [min(n_items - 1, int(depth * n_items)) for depth in DEPTHS]


def spread(lines: Sequence[str], asks: Sequence[Ask]) -> Context:
    """Return a context of two documents whose passages hold equally many of the lines, as far as that goes."""
    n = min(N_PASSAGES, len(lines))
    borders = [len(lines) * i // n for i in range(n + 1)]
    passages = tuple(" ".join(lines[start:stop]) for start, stop in pairwise(borders))
    return whole((passages[: n // 2], passages[n // 2 :]) if n > 1 else (passages,), tuple(asks))


def contains(said: str, answer: str) -> float:
    """Return 1 where the answer stands in what was said."""
    return float(answer in said)


def distinct(draw: random.Random, n: int, alphabet: str, length: int) -> list[str]:
    """Return n different strings."""
    found: dict[str, None] = {}
    while len(found) < n:
        found["".join(draw.choices(alphabet, k=length))] = None
    return list(found)
