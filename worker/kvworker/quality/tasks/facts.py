"""Facts that a passage states about who was named in the one before it: what the reference model was trained on."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from kvworker.quality.context import Ask, Context, whole
from kvworker.quality.task import DEPTHS, N_PASSAGES, Task
from kvworker.reference.notes import Question, generate


@dataclass(frozen=True)
class Facts(Task):
    """Two documents of notes; questions about facts that passages carry over from the passage before, or state outright, in turn.

    Scored by the first word. `n_items` is the number of facts in a passage.
    """

    name: ClassVar[str] = "facts"
    answer_tokens: ClassVar[int] = 2
    n_items: int = 8

    def make(self, draw: random.Random) -> Context:
        """Return notes of the test split."""
        corpus = generate(draw.randrange(1 << 30), 2, N_PASSAGES // 2, self.n_items, "test")
        asks = []
        for number, depth in enumerate(DEPTHS):
            kind = ("carried", "direct")[number % 2]
            own = [q for q in corpus.questions if q.kind == kind]
            asks.append(min(own, key=partial(_distance, depth)))
        return whole(tuple(document.passages for document in corpus.documents), tuple(Ask(q.text, q.answer, self.name) for q in asks))

    def score(self, said: str, answer: str) -> float:
        """Return 1 where the first word is the answer."""
        return float(said.replace(".", " ").split()[:1] == [answer])


def _distance(depth: float, question: Question) -> float:
    """Return how far the passage that answers lies from a depth."""
    document, index = question.passages[-1]
    return abs((document * N_PASSAGES // 2 + index + 0.5) / N_PASSAGES - depth)
