"""Calls that are under way, for asyncio; see `kvclient/underway.py`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc.aio

from kvclient.channel import Metadata
from kvclient.status import answered, typed
from kvclient.underway import NOTHING

__all__ = ["NOTHING", "Asked", "First", "Waiting", "ask_once", "ask_stream"]

First = asyncio.Future[Any]
"""A first message that is awaited."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A call that was sent; `messages` are iterated over once and raise nothing but KVError."""

    address: str
    call: Any
    messages: AsyncIterator[Any]

    def cancel(self) -> None:
        """End it; does nothing once it has ended."""
        self.call.cancel()


def ask_once(address: str, method: grpc.aio.UnaryUnaryMultiCallable[Any, Any], request: Any, timeout_s: float, metadata: Metadata) -> Asked:
    """Send a call that answers once."""
    with typed():
        call = method(request, timeout=timeout_s, metadata=metadata)
    return Asked(address, call, _answer_of(call))


def ask_stream(
    address: str, method: grpc.aio.UnaryStreamMultiCallable[Any, Any], request: Any, timeout_s: float, metadata: Metadata
) -> Asked:
    """Send a call that answers with a stream."""
    with typed():
        call = method(request, timeout=timeout_s, metadata=metadata)
    return Asked(address, call, _answers_of(call))


class Waiting:
    """Awaits first messages in tasks of the running event loop."""

    def first(self, messages: AsyncIterator[Any]) -> First:
        """Begin to await a first message, which may be NOTHING."""
        first = asyncio.ensure_future(_first(messages))
        first.add_done_callback(_note)
        return first

    async def first_of(self, firsts: Sequence[First], timeout_s: float = math.inf) -> None:
        """Wait until one is there, but no longer than `timeout_s`."""
        await asyncio.wait(firsts, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)

    def close(self) -> None:
        """Do nothing: tasks end with their calls."""


async def _first(messages: AsyncIterator[Any]) -> Any:
    return await anext(messages, NOTHING)


def _note(first: First) -> None:
    """Look at what became of a message, so that the loop does not complain of one whose failure nobody cares about."""
    if not first.cancelled():
        first.exception()


async def _answer_of(call: Any) -> AsyncIterator[Any]:
    with typed():
        yield answered(await call)


async def _answers_of(call: Any) -> AsyncIterator[Any]:
    with typed():
        async for message in call:
            yield message
