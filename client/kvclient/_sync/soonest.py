# Written by client/generate_sync.py from kvclient/_async/soonest.py; change that file and run it again.
"""The answer that begins first: of the server that was chosen, or of another one that is asked too where that one is late.

Dean and Barroso, "The Tail at Scale" (2013): a second request, sent when the first is later than nearly all are, cuts the tail and costs
little. Both servers would give the same answer, so whoever begins to speak is heard, and the other one is told to stop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from kvclient.underway import NOTHING, First, Waiting
from kvclient.usual import Usual
from kvstore.core.errors import KVError


class Turn(Protocol):
    """A request that a server was given."""

    def cancel(self) -> object:
        """End it at once."""
        ...


T = TypeVar("T", bound=Turn)


@dataclass(frozen=True, eq=False)
class Begun(Generic[T]):
    """A call whose first message is waited for."""

    turn: T
    at_s: float
    first: First
    rest: Iterator[Any]

    def messages(self) -> Generator[Any, None, None]:
        """Iterate over all messages once the first is there; raises what the call raises."""
        if (message := self.first.result()) is not NOTHING:
            yield message
            for message in self.rest:
                yield message


class Soonest:
    """Waits for first messages. Any number of threads may use it."""

    def __init__(self) -> None:
        self._waiting = Waiting()

    def begin(self, turn: T, messages: Iterator[Any]) -> Begun[T]:
        """Begin to wait: nothing of the messages has been asked for yet."""
        return Begun(turn, time.monotonic(), self._waiting.first(messages), messages)

    def of(self, chosen: Begun[T], usual: Usual, begin_another: Callable[[], Begun[T] | None]) -> Begun[T]:
        """Return the call that answers first, or fails last.

        `begin_another` is called when the chosen one is late, and again when the other one failed as another need not; it may have nobody
        to ask. So there are two at once at most.
        """
        running = [chosen]
        try:
            self._waiting.first_of([chosen.first], usual.late_s)
            done = self._first_answer(chosen, running, begin_another)
        except BaseException:
            _cancel(running)
            raise
        _cancel(begun for begun in running if begun is not done)
        if done.first.exception() is None:
            usual.saw(time.monotonic() - done.at_s)
        return done

    def _first_answer(self, chosen: Begun[T], running: list[Begun[T]], begin_another: Callable[[], Begun[T] | None]) -> Begun[T]:
        """Return the first of those that run, and of those that are asked too, which has an answer or is the last."""
        while True:
            if running == [chosen] and not chosen.first.done() and (another := begin_another()):
                running.append(another)
            self._waiting.first_of([begun.first for begun in running])
            done = next(begun for begun in running if begun.first.done())
            if len(running) == 1 or not _is_no_answer(done):
                return done
            running.remove(done)

    def close(self) -> None:
        """Wait for no more calls; a later one begins anew."""
        self._waiting.close()


def _cancel(calls: Iterable[Begun[T]]) -> None:
    """Tell servers to stop."""
    for begun in calls:
        begun.turn.cancel()


def _is_no_answer(done: Begun[T]) -> bool:
    """Tell whether a call failed as another one need not."""
    error = done.first.exception()
    return isinstance(error, KVError) and error.retryable
