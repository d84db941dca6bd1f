"""Turn token ids into text as they come, never in the middle of a character."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "\ufffd"
_LONGEST_CHARACTER = 4


class TextStream:
    """Decodes a growing list of token ids; each call returns only what is new.

    Bytes of an unfinished character are held back until it is complete, or until more tokens came than a character has bytes.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._text = ""
        self._held = 0

    def push(self, token_id: int) -> str:
        """Return the text that one more token completes, which may be empty."""
        self._ids.append(token_id)
        text = self._decode(self._ids)
        if text.endswith(_INCOMPLETE) and self._held < _LONGEST_CHARACTER - 1:
            self._held += 1
            return ""
        self._held = 0
        new, self._text = text[len(self._text) :], text
        return new

    def flush(self) -> str:
        """Return what is still held back."""
        return self._decode(self._ids)[len(self._text) :] if self._held else ""
