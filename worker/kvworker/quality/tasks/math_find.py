"""Find the largest, the smallest or the middle number of a list."""

from __future__ import annotations

import random
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from kvworker.quality.context import Ask, Context
from kvworker.quality.task import Task, at_depths, spread

_WANTED: dict[str, Callable[[list[int]], float]] = {"largest": max, "smallest": min, "median": statistics.median}


@dataclass(frozen=True)
class MathFind(Task):
    """Lists of seven different numbers. Scored by the first number that was said."""

    name: ClassVar[str] = "math_find"
    answer_tokens: ClassVar[int] = 6
    n_items: int = 8

    def make(self, draw: random.Random) -> Context:
        """Return numbered lists, with a question about one at each depth."""
        lists = [draw.sample(range(10, 1000), 7) for _ in range(self.n_items)]
        asks = []
        for at in at_depths(self.n_items):
            word = draw.choice(list(_WANTED))
            asks.append(Ask(f"The {word} number of list {at + 1} is", str(int(_WANTED[word](lists[at]))), self.name))
        return spread([f"List {i + 1}: {', '.join(map(str, numbers))}." for i, numbers in enumerate(lists)], asks)

    def score(self, said: str, answer: str) -> float:
        """Return 1 where the first number is the right one."""
        found = re.search(r"\d+", said)
        return float(found is not None and found.group() == answer)
