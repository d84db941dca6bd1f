"""Calls that are under way, for threads: whom they ask, what they answer, and waiting for whichever answers first."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import grpc

from kvclient.channel import Metadata
from kvclient.status import answered, typed

_MOST_WAITING = 1024
NOTHING = object()
"""Instead of a first message where there is none."""

First = Future[Any]
"""A first message that is awaited."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A call that was sent; `messages` are iterated over once and raise nothing but KVError."""

    address: str
    call: Any
    messages: Iterator[Any]

    def cancel(self) -> None:
        """End it; does nothing once it has ended."""
        self.call.cancel()


def ask_once(address: str, method: grpc.UnaryUnaryMultiCallable[Any, Any], request: Any, timeout_s: float, metadata: Metadata) -> Asked:
    """Send a call that answers once."""
    with typed():
        call = method.future(request, timeout=timeout_s, metadata=metadata)
    return Asked(address, call, _answer_of(call))


def ask_stream(address: str, method: grpc.UnaryStreamMultiCallable[Any, Any], request: Any, timeout_s: float, metadata: Metadata) -> Asked:
    """Send a call that answers with a stream."""
    with typed():
        call = method(request, timeout=timeout_s, metadata=metadata)
    return Asked(address, call, _answers_of(call))


class Waiting:
    """Awaits first messages on threads of its own. Thread-safe."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def first(self, messages: Iterator[Any]) -> First:
        """Begin to await a first message, which may be NOTHING."""
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(_MOST_WAITING, thread_name_prefix="first-answer")
            return self._threads.submit(next, messages, NOTHING)

    def first_of(self, firsts: Sequence[First], timeout_s: float = math.inf) -> None:
        """Wait until one is there, but no longer than `timeout_s`."""
        wait(firsts, min(timeout_s, threading.TIMEOUT_MAX), return_when=FIRST_COMPLETED)

    def close(self) -> None:
        """Let the threads go; those that wait end with their calls."""
        with self._lock:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)


def _answer_of(call: Any) -> Iterator[Any]:
    with typed():
        yield answered(call.result())


def _answers_of(call: Any) -> Iterator[Any]:
    with typed():
        yield from call
