"""Learn a random labelling from examples, and label one of them again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from kvworker.quality.context import Ask, Context
from kvworker.quality.task import Task, at_depths, contains, spread
from kvworker.reference.words import GOODS, PLACES

_LABELS = GOODS[:4]


@dataclass(frozen=True)
class ManyShot(Task):
    """Examples of a place and one of four goods that it stores. Scored by the first good that was said: chance is a quarter."""

    name: ClassVar[str] = "many_shot"
    answer_tokens: ClassVar[int] = 4
    n_items: int = 32

    def make(self, draw: random.Random) -> Context:
        """Return examples, with names in pairs where there are more examples than names, and five of them to label."""
        pairs = [f"{first} {second}" for first in PLACES for second in PLACES]
        names = draw.sample(PLACES if self.n_items <= len(PLACES) else pairs, self.n_items)
        labels = [draw.choice(_LABELS) for _ in names]
        asks = [Ask(f"What does {names[i]} store?", labels[i], self.name) for i in at_depths(self.n_items)]
        return spread([f"{name} stores {label}." for name, label in zip(names, labels, strict=True)], asks)

    def score(self, said: str, answer: str) -> float:
        """Return 1 where the label was said, and no other before it."""
        first = min(_LABELS, key=lambda label: said.find(label) if label in said else len(said))
        return contains(said, answer) if first == answer else 0.0
