"""Calls over one channel: identity and deadline on each, typed errors, and retries until the first message has come."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, TypeVar

import grpc.aio

from kvclient._async.soonest import AsyncBegun, AsyncSoonest
from kvclient.aio_underway import Asked, ask_once, ask_stream
from kvclient.attempts import Attempts
from kvclient.channel import Metadata
from kvclient.outgoing import Outgoing
from kvclient.retry import Deadline, Retry
from kvclient.status import answered
from kvclient.turns import Turns
from kvclient.usual import Usual
from kvproto.v1 import context_pb2 as pb
from kvstore.core.errors import InvalidInputError, KVError

Request = TypeVar("Request")
Response = TypeVar("Response")

_FIRST_LATE_S = 10.0
_ALIKE = (pb.AskRequest, pb.InfoRequest, pb.PassagesRequest, pb.ResolveRequest)
"""What all workers of a catalog answer alike and change nothing by: worth asking twice. An ingest would be computed twice."""


class AsyncCalls:
    """Makes the calls of one client.

    Parameters
    ----------
    metadata : Metadata
        Goes with every call: who calls.
    timeout_s : float
        The deadline of a call, all its attempts included, unless the call has its own.
    retry : Retry
        How often a call is tried that failed with a retryable error before its first message.
    turns : Turns
        Whom to ask; after such an error, the next one. Where there are several and one is late with its first message, as far as such calls
        usually take, the next one is asked too, and whoever answers first is heard.
    """

    def __init__(self, metadata: Metadata, timeout_s: float, retry: Retry, turns: Turns) -> None:
        self._metadata, self._timeout_s, self._retry, self._turns = metadata, timeout_s, retry, turns
        self._soonest = AsyncSoonest()
        self._usual = {kind: Usual(first_s=_FIRST_LATE_S) for kind in _ALIKE}
        self.deadline(timeout_s)  # a timeout that can't be is refused here rather than at the first call

    def deadline(self, timeout_s: float | None) -> Deadline:
        """Return the deadline of what begins now; a timeout that is not above 0 and finite raises InvalidInputError."""
        seconds = self._timeout_s if timeout_s is None else timeout_s
        if not (seconds > 0 and math.isfinite(seconds)):
            raise InvalidInputError(f"timeout_s must be a number of seconds above 0, got {seconds!r}")
        return Deadline.after(seconds)

    async def one(
        self, method_of: Callable[[str], grpc.aio.UnaryUnaryMultiCallable[Request, Response]], request: Request, timeout_s: float | None
    ) -> Response:
        """Return the response of a call that answers once; `method_of` gives the method at an address."""
        response: Response | None = None
        async for response in self._answers(ask_once, method_of, request, timeout_s):  # noqa: B007 (the only one)
            pass
        return answered(response)

    def stream(
        self, method_of: Callable[[str], grpc.aio.UnaryStreamMultiCallable[Request, Response]], request: Request, timeout_s: float | None
    ) -> AsyncGenerator[Response, None]:
        """Iterate over the responses of a call that answers with a stream; closing the iterator cancels the call."""
        return self._answers(ask_stream, method_of, request, timeout_s)

    def close(self) -> None:
        """Let go of what waits for answers; a later call begins anew."""
        self._soonest.close()

    async def _answers(
        self, ask: Callable[..., Asked], method_of: Callable[[str], Any], request: Any, timeout_s: float | None
    ) -> AsyncGenerator[Any, None]:
        """Send a call, and again to the next worker as long as nothing was answered and another attempt may help."""
        attempts, has_begun = Attempts(self._retry, self.deadline(timeout_s)), False
        with Outgoing(self._metadata, request) as sent:
            while True:
                asked, messages = await self._ask(
                    lambda address: ask(address, method_of(address), request, attempts.left_s(), sent.metadata),
                    self._usual.get(type(request)),
                )
                try:
                    async for response in messages:
                        has_begun = True
                        yield response
                    return
                except KVError as error:
                    if has_begun:
                        raise
                    pause_s = attempts.pause_s(error)
                finally:
                    asked.cancel()
                self._turns.failed(asked.address)
                await asyncio.sleep(pause_s)

    async def _ask(self, ask: Callable[[str], Asked], usual: Usual | None) -> tuple[Asked, AsyncIterator[Any]]:
        """Ask the worker whose turn it is, and the next one too where that is late; return which of them is heard, and its messages."""
        address, *others = self._turns.circle()
        asked = ask(address)
        if usual is None or not others:
            return asked, asked.messages
        left = iter(others)

        def ask_another() -> AsyncBegun[Asked] | None:
            another = next((ask(other) for other in left), None)
            return self._soonest.begin(another, another.messages) if another else None

        begun = await self._soonest.of(self._soonest.begin(asked, asked.messages), usual, ask_another)
        if begun.turn is not asked:
            self._turns.heard(begun.turn.address)
        return begun.turn, begun.messages()
