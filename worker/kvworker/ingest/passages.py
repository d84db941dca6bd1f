"""A passage as the worker knows it, the keys of a document's passages, and the ways in which a passage can be read."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

from kvstore.core.errors import InvalidInputError
from kvstore.core.key import ChunkKey, Kind, chain_keys, content_key
from kvworker.ingest.windows import Window

AUTO, DOCUMENT, ALONE = "auto", "document", "alone"
READ_AS = (DOCUMENT, ALONE)  # the better first: a passage read in its document knows what it speaks about
Known = Set[tuple[bytes, str]]
"""Contents that ingests asked for, each with how it was to be read."""


@dataclass(frozen=True)
class Passage:
    """One passage: its content key, the passage that it was read behind, and its tokens (its own BOS first).

    `parent` is None for a passage read alone, also for the first of a document. `source` and `index` say where it came from.
    """

    content: bytes
    parent: bytes | None
    token_ids: tuple[int, ...]
    source: str
    index: int
    preview: str

    @property
    def kind(self) -> Kind:
        """How it is read."""
        return Kind.ALONE if self.parent is None else Kind.DOCUMENT

    def is_itself(self, namespace: bytes) -> bool:
        """Tell whether its content key is the one that its tokens, and what it was read behind, give."""
        return self.content == content_key(namespace, self.kind, self.token_ids, self.parent)

    def key(self, namespace: bytes, variant: bytes) -> ChunkKey:
        """Return the key of this passage's chunk in one variant."""
        return ChunkKey(namespace, self.content, variant)

    def alone(self, namespace: bytes) -> Passage:
        """Return the same passage read by itself."""
        if self.parent is None:
            return self
        return replace(self, content=content_key(namespace, Kind.ALONE, self.token_ids), parent=None)


@dataclass(frozen=True)
class Reading:
    """One way in which a passage is read, "document" or "alone", and the passage with the key that this gives it."""

    read_as: str
    passage: Passage

    @property
    def rank(self) -> int:
        """Its place in the order of quality, 0 for the best."""
        return READ_AS.index(self.read_as)


def readings_of(passage: Passage, alone: Passage, read_as: str, known: Known) -> tuple[Reading, ...]:
    """Return the readings of a passage that may answer a question, the best first; `alone` is the same passage read by itself.

    "document" allows its reading in the document only, where it has one; "alone" the one by itself only, also if nobody ingested it so;
    "auto" every reading that was ingested. The first passage of a document is the same chunk either way. Raises InvalidInputError.
    """
    if read_as not in (AUTO, *READ_AS):
        raise InvalidInputError(f"read_as is one of {', '.join((AUTO, *READ_AS))} for a question, not {read_as!r}")
    by_itself = Reading(ALONE, alone)
    if read_as == ALONE:
        return (by_itself,)
    in_document = passage.parent is not None or (passage.content, DOCUMENT) in known
    document = (Reading(DOCUMENT, passage),) if in_document else ()
    if read_as == DOCUMENT:
        return document
    is_another = alone.content != passage.content
    return document if document and not (is_another and (alone.content, ALONE) in known) else (*document, by_itself)


def read_window(namespace: bytes, source: str, texts: Sequence[str], tokens: Sequence[tuple[int, ...]], window: Window) -> list[Passage]:
    """Return the passages of one window of a document, those that only give context included.

    Keys are chained from the window's first passage, since that is what each passage was read behind.
    """
    span = range(window.start, window.stop)
    keys = chain_keys(namespace, Kind.DOCUMENT, [tokens[i] for i in span])
    parents = [None, *keys]
    return [Passage(key, parent, tokens[i], source, i, _preview(texts[i])) for i, key, parent in zip(span, keys, parents, strict=False)]


def _preview(text: str) -> str:
    """Return the first words of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."
