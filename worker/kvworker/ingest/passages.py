"""A passage as the worker knows it, and the keys of a document's passages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvstore.core.key import ChunkKey, Kind, chain_keys
from kvworker.ingest.windows import Window


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

    def key(self, namespace: bytes, variant: bytes) -> ChunkKey:
        """Return the key of this passage's chunk in one variant."""
        return ChunkKey(namespace, self.content, variant)


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
