"""Find the string that starts and ends in a given way."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from typing import ClassVar

from kvworker.quality.context import Ask, Context
from kvworker.quality.task import Task, at_depths, contains, distinct, spread


@dataclass(frozen=True)
class PrefixSuffix(Task):
    """Random strings of nine letters, no two of which start or end alike. Scored by substring."""

    name: ClassVar[str] = "prefix_suffix"
    answer_tokens: ClassVar[int] = 12

    def make(self, draw: random.Random) -> Context:
        """Return the strings, and questions that name three letters at either end."""
        parts = [distinct(draw, self.n_items, string.ascii_lowercase, 3) for _ in range(3)]
        strings = ["".join(pieces) for pieces in zip(*parts, strict=True)]
        picked = [strings[i] for i in at_depths(self.n_items)]
        asks = [Ask(f"The string that starts with {s[:3]} and ends with {s[-3:]} is", s, self.name) for s in picked]
        return spread([f"A string is {s}." for s in strings], asks)

    def score(self, said: str, answer: str) -> float:
        """Return 1 where the whole string was said."""
        return contains(said, answer)
