"""The answer that begins first: of the worker that was chosen, or of another one that is asked too where that one is late.

Dean and Barroso, "The Tail at Scale" (2013): a second request, sent when the first is later than nearly all are, cuts the tail and costs
little. Both workers would give the same answer, so whoever begins to speak is heard, and the other one is told to stop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from kvstore.core.errors import ClosedError, KVError
from kvworker.route.turn import Turn
from kvworker.route.usual import Usual

_MOST_WAITING = 1024
_NOTHING = object()


@dataclass(frozen=True)
class Begun:
    """A call whose first message is awaited on a thread of its own."""

    turn: Turn
    at_s: float
    first: Future[Any]
    rest: Iterator[Any]

    def messages(self) -> Iterator[Any]:
        """Iterate over all messages; raises what the call raises."""
        if (message := self.first.result()) is not _NOTHING:
            yield message
            yield from self.rest


class Soonest:
    """Waits for first messages. Thread-safe."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_MOST_WAITING, thread_name_prefix="first-answer")

    def begin(self, turn: Turn, messages: Iterator[Any]) -> Begun:
        """Begin a call: nothing of it has been asked for yet. Raises ClosedError."""
        try:
            return Begun(turn, time.monotonic(), self._threads.submit(next, messages, _NOTHING), messages)
        except RuntimeError as error:
            raise ClosedError("the front is closed") from error

    def of(self, chosen: Begun, usual: Usual, begin_another: Callable[[], Begun | None]) -> Begun:
        """Return the call that answers first, or fails last; `begin_another` is called at most once, and may have nobody to ask."""
        running = [chosen]
        wait([chosen.first], min(usual.late_s, threading.TIMEOUT_MAX))
        if not chosen.first.done() and (another := begin_another()):
            running.append(another)
        while _is_no_answer(done := _first(running)) and len(running) > 1:
            running.remove(done)
        for begun in running:
            if begun is not done:
                begun.turn.cancel()
        if done.first.exception() is None:
            usual.saw(time.monotonic() - done.at_s)
        return done

    def close(self) -> None:
        """Wait for no more calls."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _first(running: Sequence[Begun]) -> Begun:
    """Wait for the first that is done."""
    wait([begun.first for begun in running], return_when=FIRST_COMPLETED)
    return next(begun for begun in running if begun.first.done())


def _is_no_answer(done: Begun) -> bool:
    """Tell whether a call failed as another one need not."""
    error = done.first.exception()
    return isinstance(error, KVError) and error.retryable
