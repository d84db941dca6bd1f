"""Find sentences that matter between sentences that do not."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from kvworker.quality.context import Ask, Context
from kvworker.quality.task import DEPTHS, Task, at_depths, contains, spread
from kvworker.reference.words import FILLERS, GOODS, PLACES


@dataclass(frozen=True)
class Needles(Task):
    """What five places export, between sentences that say nothing. Scored by substring."""

    name: ClassVar[str] = "needles"
    answer_tokens: ClassVar[int] = 4

    def make(self, draw: random.Random) -> Context:
        """Return filler with a needle at each depth."""
        lines = [draw.choice(FILLERS) for _ in range(self.n_items)]
        asks = []
        names, goods = draw.sample(PLACES, len(DEPTHS)), draw.sample(GOODS, len(DEPTHS))
        for at, name, good in zip(at_depths(self.n_items), names, goods, strict=True):
            lines[at] = f"{name} exports {good}."
            asks.append(Ask(f"What does {name} export?", good, self.name))
        return spread(lines, asks)

    def score(self, said: str, answer: str) -> float:
        """Return 1 where the good was said."""
        return contains(said, answer)
