"""Hand a call on to a worker, and to another one where that fails: what the caller has heard already is not said twice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import grpc

from kvclient._sync.soonest import Begun, Soonest
from kvclient.channel import Metadata
from kvclient.retry import Deadline, Retry
from kvclient.status import ERROR_KEY, typed
from kvclient.usual import Usual
from kvproto.v1 import context_pb2_grpc as pb_grpc
from kvstore.core.calling import REQUEST_KEY
from kvstore.core.errors import KVError, TierUnavailableError
from kvstore.core.tracing import TRACE_KEY
from kvworker.route.board import Board, Place
from kvworker.route.choose import PassageKey
from kvworker.route.links import Links
from kvworker.route.turn import Turn

_log = logging.getLogger(__name__)

PATIENCE_S = 60.0
"""How long a request waits for a worker at most, whatever its deadline."""
_TURNS = 8
_LONGEST_CALL_S = 86_400.0  # of a caller who names no deadline
_PASSED_ON = ("authorization", TRACE_KEY, REQUEST_KEY)


@dataclass(frozen=True)
class Request:
    """A call to hand on.

    Parameters
    ----------
    method : str
        Of the context service.
    message
        The request.
    wanted : mapping
        The passages that it is about, with their bytes; empty where any worker is as good.
    same : callable
        What of a message two workers answer alike that do the same work: after a worker was lost in the middle another one begins anew,
        and what the caller has heard is compared by this and left out.
    only : str
        The worker to ask if it takes requests; "" for any.
    usual : Usual or None
        How soon such calls are answered: a second worker is asked too where the first is late. None where that would cost too much.
    """

    method: str
    message: Any
    wanted: Mapping[PassageKey, int] = field(default_factory=dict)
    same: Callable[[Any], object] = lambda message: message.SerializeToString(deterministic=True)
    only: str = ""
    usual: Usual | None = None


class Forwarder:
    """Hands calls on to the workers of a board. Thread-safe."""

    def __init__(self, board: Board, links: Links, retry: Retry | None = None) -> None:
        self._board, self._links, self._soonest = board, links, Soonest()
        self._retry = retry or Retry(_TURNS)

    def stream(self, request: Request, context: grpc.ServicerContext) -> Iterator[tuple[Turn, Any]]:
        """Yield what a call answers, with who answered.

        A call that its worker did not finish, because it died, went silent or had no room, goes to another one. Raises what the worker
        raised, TierUnavailableError where no worker takes the call, and KVError where a second worker answers differently from the first.
        """
        deadline = Deadline.after(min(PATIENCE_S, left_s(context)))
        heard: list[object] = []
        failed: set[Place] = set()
        for attempt in range(1, self._retry.attempts + 1):
            with ExitStack() as stack:
                turn = self._take(stack, request, context, failed, deadline.left_s())
                try:
                    turn, messages = self._answering(stack, turn, request, context, failed)
                    for message in _behind(heard, messages, request.same):
                        yield turn, message
                    return
                except KVError as error:
                    self._judge(turn, error, context.is_active() and attempt < self._retry.attempts)
                    reason = str(error)
            failed.add(turn.place)
            _log.warning("worker %s did not finish %s, another one does: %s", turn.name, request.method, reason)
            if len(failed) >= len(self._board.places()):
                self._retry.sleep(self._retry.pause_s(attempt))

    def one(self, request: Request, context: grpc.ServicerContext) -> Any:
        """Return what a call that answers once answers."""
        for _, message in self.stream(request, context):
            return message
        raise TierUnavailableError(f"a worker ended {request.method} without an answer; send it again")

    def close(self) -> None:
        """Begin no more calls."""
        self._soonest.close()

    def _take(self, stack: ExitStack, request: Request, context: grpc.ServicerContext, but: Collection[Place], patience_s: float) -> Turn:
        """Choose a worker for as long as the stack lasts; a caller who leaves ends its call."""
        turn = stack.enter_context(self._board.turn(request.wanted, request.only, but, patience_s, context.is_active))
        if not context.add_callback(turn.cancel):
            turn.cancel()
        return turn

    def _answering(
        self, stack: ExitStack, turn: Turn, request: Request, context: grpc.ServicerContext, failed: Collection[Place]
    ) -> tuple[Turn, Iterator[Any]]:
        """Return who answers, and the answers: the chosen worker, or another one if that is late and the other begins before it."""
        answers = self._answers(turn, request, context)
        if request.usual is None:
            return turn, answers

        asked = {turn.place}

        def begin_another() -> Begun[Turn] | None:
            try:
                other = self._take(stack, request, context, (*failed, *asked), 0.0)
            except TierUnavailableError:
                return None
            if other.place in asked:  # there is no other
                return None
            asked.add(other.place)
            _log.warning("worker %s is late with %s, %s is asked too", turn.name, request.method, other.name)
            self._board.doubt(turn.place)
            return self._soonest.begin(other, self._answers(other, request, context))

        begun = self._soonest.of(self._soonest.begin(turn, answers), request.usual, begin_another)
        return begun.turn, begun.messages()

    def _answers(self, turn: Turn, request: Request, context: grpc.ServicerContext) -> Iterator[Any]:
        """Call a worker and iterate over its answers; raises nothing but KVError."""
        with typed():
            stub = pb_grpc.ContextServiceStub(self._links.to(turn.address))  # type: ignore[no-untyped-call]
            begin = getattr(stub, request.method)
            timeout_s, metadata = left_s(context), passed_on(context.invocation_metadata())
            if isinstance(begin, grpc.UnaryStreamMultiCallable):
                call: Any = begin(request.message, timeout=timeout_s, metadata=metadata)
                turn.attach(call)
                yield from call
                return
            future = begin.future(request.message, timeout=timeout_s, metadata=metadata)
            turn.attach(future)
            try:
                yield future.result()
            except grpc.FutureCancelledError as error:
                raise TierUnavailableError(f"worker {turn.name} was given up in the middle of the call") from error

    def _judge(self, turn: Turn, error: KVError, may_try_again: bool) -> None:
        """Return if another worker may finish the call, else raise its error; a worker that could not be reached is off the board."""
        failure = error.__cause__
        if isinstance(error, TierUnavailableError) and isinstance(failure, grpc.RpcError) and not _is_named(failure):
            self._board.lost(turn.place)
        if not (error.retryable and may_try_again):
            raise error


def left_s(context: grpc.ServicerContext) -> float:
    """Return the seconds that a call has left."""
    remaining_s = context.time_remaining()
    return _LONGEST_CALL_S if remaining_s is None else min(_LONGEST_CALL_S, remaining_s)


def passed_on(metadata: Sequence[tuple[str, str | bytes]]) -> Metadata:
    """Return what of a call's metadata goes to the worker: who calls, and what the request is called."""
    return tuple((key, value) for key, value in metadata if key in _PASSED_ON and isinstance(value, str))


def _behind(heard: list[object], messages: Iterator[Any], same: Callable[[Any], object]) -> Iterator[Any]:
    """Yield the messages behind those that were heard, and note them as heard; raises KVError where those differ."""
    before = list(heard)
    for n, message in enumerate(messages):
        if n >= len(before):
            heard.append(same(message))
            yield message
        elif same(message) != before[n]:
            raise KVError("a worker was lost in the middle of an answer, and another one answers differently; ask again")


def _is_named(failure: grpc.RpcError) -> bool:
    """Tell whether the worker itself said what failed: then it lives."""
    trailing: Metadata = (failure.trailing_metadata() if isinstance(failure, grpc.Call) else ()) or ()
    return any(key == ERROR_KEY for key, _ in trailing)
