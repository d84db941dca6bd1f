"""Turn token ids into text as they come, never in the middle of a character."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvclient.records import Token

_INCOMPLETE = "\ufffd"
_MOST_INCOMPLETE = 3  # bytes of a character that lacks its last one, each decoded by itself at worst


class TextStream:
    """Decodes a growing list of token ids; each call returns the tokens whose text is settled, with what is new of it.

    Bytes of an unfinished character are held back, and their tokens with them, until it is complete or more tokens came than a character
    has bytes.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._n_settled = 0
        self._text = ""

    def push(self, token_id: int) -> list[Token]:
        """Take one more token; return those that are settled by it."""
        self._ids.append(token_id)
        text = self._decode(self._ids)
        if not text.endswith(_INCOMPLETE):
            return self._settle(text, 0)
        n_held = min(_MOST_INCOMPLETE, len(text) - len(text.rstrip(_INCOMPLETE)))
        return self._settle(text[: len(text) - n_held], _MOST_INCOMPLETE)

    def flush(self) -> list[Token]:
        """Return the tokens that are still held back."""
        return self._settle(self._decode(self._ids), 0)

    def _settle(self, text: str, n_held: int) -> list[Token]:
        """Release all tokens but the last `n_held`, the last of them with the text that is new."""
        released = self._ids[self._n_settled : len(self._ids) - n_held]
        if not released:
            return []
        self._n_settled += len(released)
        new, self._text = text[len(self._text) :], max(self._text, text, key=len)
        return [*(Token(token_id, "") for token_id in released[:-1]), Token(released[-1], new)]
