"""An answer being given: tokens as they come, then its text and report."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import TracebackType

from kvclient.messages import report_from
from kvclient.records import Report, Token
from kvproto.v1 import context_pb2
from kvstore.core.errors import ClosedError, FormatError, InvalidInputError, KVError


class AsyncAnswer:
    """The answer to one question; the call starts with the first token asked for.

    Iterate over it to get the tokens, or `finish()` to wait for all of them; then `text` and `report` are there. Leaving it early with
    `close()`, or at the end of an `async with` block, stops the worker. One task at a time may iterate.
    """

    def __init__(self, messages: AsyncGenerator[context_pb2.AskResponse, None]) -> None:
        self._messages = messages
        self._tokens: list[Token] = []
        self._report: Report | None = None
        self._is_closed = False

    def __aiter__(self) -> AsyncAnswer:
        return self

    async def __anext__(self) -> Token:
        async for message in self._messages:
            if message.WhichOneof("kind") == "token":
                token = Token(message.token.id, message.token.text)
                self._tokens.append(token)
                return token
            self._report = report_from(message.report)
        if self._report is None:
            raise _without_report(self._is_closed)
        raise StopAsyncIteration

    async def finish(self) -> AsyncAnswer:
        """Wait for all tokens and the report; return the answer itself."""
        async for _ in self:
            pass
        return self

    async def close(self) -> None:
        """Stop the answer; does nothing once it is complete."""
        self._is_closed = True
        await self._messages.aclose()

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens that came so far."""
        return tuple(self._tokens)

    @property
    def text(self) -> str:
        """The text of the tokens that came so far."""
        return "".join(token.text for token in self._tokens)

    @property
    def report(self) -> Report:
        """How the question was answered; raises InvalidInputError before the last token."""
        if self._report is None:
            raise InvalidInputError("the report comes behind the last token: iterate over the answer to its end, or call finish()")
        return self._report

    async def __aenter__(self) -> AsyncAnswer:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()


def _without_report(is_closed: bool) -> KVError:
    """Return why an answer ended without its report."""
    if is_closed:
        return ClosedError("the answer was closed before it was complete; ask again")
    return FormatError("the answer ended without its report; the server speaks another version")
