"""Follow assignments from variable to variable, across passages."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from typing import ClassVar

from kvworker.quality.context import Ask, Context
from kvworker.quality.task import DEPTHS, Task, distinct, spread
from kvworker.reference.words import FILLERS


@dataclass(frozen=True)
class VariableTracking(Task):
    """Five chains of four hops, each starting at its depth and going on anywhere behind, between sentences that say nothing.

    Scored by the share of names that were said.
    """

    name: ClassVar[str] = "variable_tracking"
    answer_tokens: ClassVar[int] = 30
    n_chains: int = 5
    n_hops: int = 4

    def make(self, draw: random.Random) -> Context:
        """Return assignments in an order in which every variable is assigned before it is used."""
        names = distinct(draw, self.n_chains * (self.n_hops + 1), string.ascii_uppercase, 2)
        values = distinct(draw, self.n_chains, string.digits, 4)
        placed = [(draw.random(), draw.choice(FILLERS)) for _ in range(self.n_items)]
        asks = []
        for chain, (value, depth) in enumerate(zip(values, DEPTHS, strict=False)):
            own = names[chain * (self.n_hops + 1) : (chain + 1) * (self.n_hops + 1)]
            places = [depth, *sorted(draw.uniform(depth, 1.0) for _ in range(self.n_hops))]
            sources = [value, *own]
            placed += [(place, f"{name} = {source}.") for place, name, source in zip(places, own, sources, strict=False)]
            asks.append(Ask(f"The variables that equal {value} are", " ".join(own), self.name))
        return spread([line for _, line in sorted(placed)], asks)

    def score(self, said: str, answer: str) -> float:
        """Return the share of the variables that were said."""
        names = answer.split()
        return sum(name in said for name in names) / len(names)
