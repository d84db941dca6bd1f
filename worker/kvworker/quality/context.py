"""A context to measure on: documents, which of their passages stand in the prompt, and questions whose answers are known."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

Spot = tuple[int, int]
"""A passage's place: document and index."""


@dataclass(frozen=True)
class Ask:
    """A question behind a context, its answer, and what kind of question it is."""

    text: str
    answer: str
    kind: str


@dataclass(frozen=True)
class Context:
    """Documents as lists of passages, the passages of the prompt in its order, and what is asked about them.

    A document may hold passages that are not in the prompt: who reads passages in their documents reads those too.
    """

    documents: tuple[tuple[str, ...], ...]
    prompt: tuple[Spot, ...]
    asks: tuple[Ask, ...]

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The prompt's passages."""
        return tuple(self.documents[document][index] for document, index in self.prompt)


def whole(documents: tuple[tuple[str, ...], ...], asks: tuple[Ask, ...]) -> Context:
    """Return a context of every passage, in order."""
    return Context(documents, tuple((d, p) for d, passages in enumerate(documents) for p in range(len(passages))), asks)
