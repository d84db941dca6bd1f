"""The guard around every call of a gRPC server: typed errors out, and no thread lost to a client that says nothing.

A synchronous server blocks a thread wherever it waits for a client: for a request, for the next piece, for room to send. The guard turns
every method into one that reads its own messages, so that it knows who is waiting and since when, and cancels whoever stays silent.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError

from kvclient.status import ERROR_KEY, RETRY_KEY
from kvstore.core.errors import AuthError, FormatError, KVError
from kvstore.server.access.audit import AuditLog
from kvstore.server.access.handshakes import Handshakes
from kvstore.server.observe.calls import OK, CallLog
from kvstore.server.visit import Visit

logger = logging.getLogger(__name__)

BUSY_SILENCE_S = 1.0  # how long a busy server bears silence
_MAX_MESSAGE_CHARS = 1024
_CUT = "CANCELLED"  # how a call ends that nobody waits for any more


class Call(Protocol):
    """What can be cancelled: a call's context."""

    def cancel(self) -> Any:
        """End the call at once; whoever waits in it is woken."""
        ...


class SilenceWatch:
    """Knows which calls wait for their client and cancels those that wait too long.

    Parameters
    ----------
    idle_timeout_s : float
        Longest silence.
    busy_at : int
        From this many waiting calls on, the longest silence is at most `BUSY_SILENCE_S`.
    """

    def __init__(self, idle_timeout_s: float, busy_at: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._idle_timeout_s = idle_timeout_s
        self._busy_silence_s = min(BUSY_SILENCE_S, idle_timeout_s)
        self._busy_at = busy_at
        self._clock = clock
        self._lock = threading.Lock()
        self._since: dict[Call, float] = {}
        self._stopped = threading.Event()

    def begin(self, call: Call) -> None:
        """Note that a call waits for its client from now on."""
        with self._lock:
            self._since[call] = self._clock()

    def end(self, call: Call) -> None:
        """Note that the client answered, or that the call is over."""
        with self._lock:
            self._since.pop(call, None)

    def cut(self) -> int:
        """Cancel the calls that were silent for too long; return how many."""
        with self._lock:
            is_busy = len(self._since) >= self._busy_at
            oldest = self._clock() - (self._busy_silence_s if is_busy else self._idle_timeout_s)
            silent = [call for call, since in self._since.items() if since <= oldest]
            for call in silent:
                del self._since[call]
        return self._cancel(silent)

    def relieve(self) -> int:
        """Cancel the calls that a busy server would not bear any longer; return how many. For when something else than threads runs out."""
        with self._lock:
            oldest = self._clock() - self._busy_silence_s
            silent = [call for call, since in self._since.items() if since <= oldest]
        return self._cancel(silent)

    def run(self) -> None:
        """Cut silent calls until `stop`."""
        while not self._stopped.wait(self._busy_silence_s / 4):
            self.cut()

    def stop(self) -> None:
        """End `run`."""
        self._stopped.set()

    @staticmethod
    def _cancel(calls: list[Call]) -> int:
        for call in calls:
            call.cancel()
        if calls:
            logger.warning("cut %d calls whose client was silent for too long", len(calls))
        return len(calls)


class Guard(grpc.ServerInterceptor):
    """Wraps every method of a server; see the module's docstring. A caller without an accepted identity leaves an audit line."""

    def __init__(
        self, watch: SilenceWatch, calls: CallLog | None = None, audit: AuditLog | None = None, handshakes: Handshakes | None = None
    ) -> None:
        self._watch, self._calls, self._audit = watch, calls or CallLog(), audit or AuditLog()
        self._handshakes = handshakes
        self._guarded: dict[str, tuple[Any, Any]] = {}  # by method: its handler, which a server keeps, and the guarded one

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Return the method's handler, guarded; None for an unknown method."""
        handler = continuation(details)
        if handler is None:
            return None
        known = self._guarded.get(details.method)
        if known is None or known[0] is not handler:
            known = self._guarded[details.method] = handler, self._guard(handler, details.method.rpartition("/")[2])
        return known[1]

    def _guard(self, handler: Any, name: str) -> Any:
        """Return a handler that watches its client and counts its calls under a name."""
        act = handler.stream_stream or handler.stream_unary or handler.unary_stream or handler.unary_unary
        make = grpc.stream_stream_rpc_method_handler if handler.response_streaming else grpc.stream_unary_rpc_method_handler
        run = self._answer_many if handler.response_streaming else self._answer_one

        def behaviour(messages: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            if self._handshakes is not None and self._handshakes.is_watching:
                self._handshakes.called(context.peer())
            requests = self._requests(messages, context, handler.request_deserializer)
            return run(name, act, requests if handler.request_streaming else None, requests, context)

        return make(behaviour, request_deserializer=None, response_serializer=handler.response_serializer)

    def _requests(self, messages: Iterator[bytes], context: grpc.ServicerContext, parse: Callable[[bytes], Any] | None) -> Iterator[Any]:
        """Iterate over the parsed requests; the wait for each is watched."""
        while True:
            self._watch.begin(context)
            try:
                message = next(messages)
            except StopIteration:
                return
            finally:
                self._watch.end(context)
            try:
                yield parse(message) if parse else message
            except DecodeError as error:
                raise FormatError(f"{len(message)} B are not a message of this method") from error

    def _answer_one(self, name: str, act: Any, stream: Iterator[Any] | None, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        """Call a method that answers once."""
        visit, code = Visit(self._calls, name, context.invocation_metadata()), _CUT
        try:
            answer = visit.run(lambda: act(stream or _first(requests), context))
            code = OK
            return answer
        except grpc.RpcError as error:
            error.__traceback__ = None  # gRPC keeps the error, and with its frames the memory of the call
            raise
        except Exception as error:
            reason, code = error, _code_of(error)
        finally:
            visit.end(code)
        return self._abort(name, context, reason)

    def _answer_many(
        self, name: str, act: Any, stream: Iterator[Any] | None, requests: Iterator[Any], context: grpc.ServicerContext
    ) -> Iterator[Any]:
        """Call a method that answers with a stream; the wait for room to send is watched."""
        visit, code = Visit(self._calls, name, context.invocation_metadata()), _CUT
        try:
            answers: Iterator[Any] = visit.run(lambda: iter(act(stream or _first(requests), context)))
            while (answer := visit.run(next, answers, None)) is not None:
                self._watch.begin(context)
                yield answer
                self._watch.end(context)
            code = OK
            return
        except GeneratorExit:
            raise
        except grpc.RpcError as error:
            error.__traceback__ = None
            raise
        except Exception as error:
            reason, code = error, _code_of(error)
        finally:
            self._watch.end(context)
            visit.end(code)
        self._abort(name, context, reason)

    def _abort(self, name: str, context: grpc.ServicerContext, error: Exception) -> Any:
        """End a call with its error, and note who was not let in."""
        if isinstance(error, AuthError):
            self._audit.refused(name, context.peer(), error)
        return _abort(context, error)


def _first(requests: Iterator[Any]) -> Any:
    """Return the one request of a method that takes one."""
    try:
        return next(requests)
    except StopIteration:
        raise FormatError("the call was closed before its request was sent") from None


def _code_of(error: Exception) -> str:
    """Return the status that a call ends with."""
    return error.code if isinstance(error, KVError) else KVError.code


def _abort(context: grpc.ServicerContext, error: Exception) -> Any:
    """End the call with the error's status and class name; what is not ours becomes INTERNAL and says nothing of the inside."""
    name, code, message = "KVError", _code_of(error), "the server failed; its log says why"
    if isinstance(error, KVError):
        name, message = type(error).__name__, str(error)[:_MAX_MESSAGE_CHARS]
    else:
        logger.error("a call failed", exc_info=error)
    error.__traceback__ = None  # its frames refer to the error: together they would keep the memory of the call
    hint = ((RETRY_KEY, str(math.ceil(1000 * error.retry_after_s))),) if isinstance(error, KVError) and error.retry_after_s else ()
    context.set_trailing_metadata(((ERROR_KEY, name), *hint))
    context.abort(grpc.StatusCode[code], message)
