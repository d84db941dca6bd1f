"""Look up the value of a random key: nothing but exact recall helps."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from kvworker.quality.context import Ask, Context
from kvworker.quality.task import Task, at_depths, contains, distinct, spread

_HEX = "0123456789abcdef"


@dataclass(frozen=True)
class KeyValue(Task):
    """Lines of random hexadecimal keys and values. Scored by substring."""

    name: ClassVar[str] = "kv"
    answer_tokens: ClassVar[int] = 8

    def make(self, draw: random.Random) -> Context:
        """Return keys of four digits, which are all different, with values of four."""
        keys, values = distinct(draw, self.n_items, _HEX, 4), distinct(draw, self.n_items, _HEX, 4)
        asks = [Ask(f"Key {keys[i]} has value", values[i], self.name) for i in at_depths(self.n_items)]
        return spread([f"Key {key} has value {value}." for key, value in zip(keys, values, strict=True)], asks)

    def score(self, said: str, answer: str) -> float:
        """Return 1 where the value was said."""
        return contains(said, answer)
