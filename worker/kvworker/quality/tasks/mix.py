"""Two tasks over one context: keys and values between needles."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import ClassVar

from kvworker.quality.context import Ask, Context
from kvworker.quality.task import Task, contains, spread
from kvworker.quality.tasks.kv import KeyValue
from kvworker.quality.tasks.needles import Needles


@dataclass(frozen=True)
class Mix(Task):
    """Lines of `kv` and of `needles` in turn; the questions alternate. Scored by substring, as both."""

    name: ClassVar[str] = "mix"
    answer_tokens: ClassVar[int] = 8

    def make(self, draw: random.Random) -> Context:
        """Return both families' lines, passage by passage."""
        first, second = (task.make(draw) for task in (KeyValue(self.n_items // 2), Needles(self.n_items // 2)))
        lines = [line for pair in zip(first.texts, second.texts, strict=True) for line in pair]
        asks: list[Ask] = [replace(pair[i % 2], kind=self.name) for i, pair in enumerate(zip(first.asks, second.asks, strict=True))]
        return spread(lines, asks)

    def score(self, said: str, answer: str) -> float:
        """Return 1 where the answer was said."""
        return contains(said, answer)
