"""What an ingest reads, in which order, and what it gives each passage: pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvstore.core.errors import InvalidInputError
from kvworker.ingest.passages import ALONE, DOCUMENT, READ_AS, Passage, Reading, read_window
from kvworker.ingest.windows import Window, document_windows

BOTH = "both"


@dataclass(frozen=True)
class Task:
    """Passages that are read behind each other in one go; those before `first_new` only give context, another task stores them."""

    chain: tuple[Passage, ...]
    first_new: int = 0

    @property
    def new(self) -> tuple[Passage, ...]:
        """The passages that this task stores."""
        return self.chain[self.first_new :]


@dataclass(frozen=True)
class Step:
    """The passages that one window of a document adds: `rows` has the readings of each, the best first.

    `window` are the passages of the window, and `alone` those of them that this step reads by themselves, None for the others; both are
    empty where nothing is known of the document.
    """

    rows: tuple[tuple[Reading, ...], ...]
    tasks: tuple[Task, ...]
    window: tuple[Passage, ...]
    alone: tuple[Passage | None, ...]


def ingest_steps(
    namespace: bytes, source: str, texts: Sequence[str], tokens: Sequence[tuple[int, ...]], limit: int, read_as: str
) -> list[Step]:
    """Return what has to be read of a document; raises InvalidInputError for a passage that does not fit or an unknown way to read."""
    if read_as not in (*READ_AS, BOTH):
        raise InvalidInputError(f"read_as is one of {', '.join(READ_AS)} or {BOTH} for an ingest, not {read_as!r}")
    windows = document_windows([len(ids) for ids in tokens], limit)
    kinds = READ_AS if read_as == BOTH else (read_as,)
    return [_step(namespace, read_window(namespace, source, texts, tokens, window), window, kinds) for window in windows]


def _step(namespace: bytes, chain: Sequence[Passage], window: Window, kinds: Sequence[str]) -> Step:
    """Return what one window adds; what two tasks would store is stored by the first."""
    task = Task(tuple(chain), window.first_new - window.start)
    alone = [p.alone(namespace) for p in task.new]
    found = {DOCUMENT: task.new, ALONE: tuple(alone)}
    tasks = [task] if DOCUMENT in kinds else []
    seen = {p.content for t in tasks for p in t.new}
    for passage in alone if ALONE in kinds else ():
        if passage.content not in seen:
            seen.add(passage.content)
            tasks.append(Task((passage,)))
    rows = zip(*([Reading(kind, p) for p in found[kind]] for kind in kinds), strict=True)
    others = [None] * task.first_new
    return Step(tuple(rows), tuple(tasks), task.chain, (*others, *(alone if ALONE in kinds else [None] * len(alone))))
