"""Status codes of gRPC as the errors that the server raised."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc
import grpc.aio

from kvclient.unreachable import say_unreachable
from kvstore.core import errors
from kvstore.core.errors import DeadlineError, KVError, TierUnavailableError, UnsupportedError, error_for_code, with_hint

T = TypeVar("T")

RETRY_KEY = "larder-retry-after-ms"  # trailing metadata of an error that says when to come again
ERROR_KEY = "larder-error"  # trailing metadata: the class name of the error, so that the client raises the same one
_NO_METHOD = "Method not found!"  # what gRPC says by itself


def to_error(error: grpc.RpcError) -> KVError:
    """Return the error that a failed call stands for: the class that the server names where it is one of ours, else the status's."""
    code = error.code().name if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else "UNKNOWN"
    details = (error.details() if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else "") or code
    if code == "CANCELLED":
        return TierUnavailableError(f"the call was cut short: {details}")
    if code == "DEADLINE_EXCEEDED":
        return DeadlineError(f"no answer within the deadline: {details}")
    if code == "UNIMPLEMENTED" and details == _NO_METHOD:
        return UnsupportedError("this server does not offer that call: it may be a store without a worker, or of another version")
    trailing = (error.trailing_metadata() if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else None) or ()
    message = say_unreachable(details) if code == "UNAVAILABLE" else details
    return with_hint(_class_of(trailing, code)(message), next((value for key, value in trailing if key == RETRY_KEY), ""))


def _class_of(trailing: Iterable[tuple[str, str | bytes]], code: str) -> type[KVError]:
    """Return the class that the trailing metadata names if its status fits, else the one that stands for the status."""
    for key, value in trailing:
        named = getattr(errors, value, None) if key == ERROR_KEY and isinstance(value, str) else None
        if isinstance(named, type) and issubclass(named, KVError) and named.code == code:
            return named
    return error_for_code(code)


def answered(answer: T | None) -> T:
    """Return the answer of a call; gRPC has None for a call that ended well before its message came: CorruptError."""
    if answer is None:
        raise errors.CorruptError("the call ended without its answer; send it again")
    return answer


@contextmanager
def typed() -> Iterator[None]:
    """Turn gRPC's errors within the block into ours."""
    try:
        yield
    except grpc.RpcError as error:
        error.__traceback__ = None  # a stream is its own error: with the frames that wait for it, it would keep their memory
        raise to_error(error) from error
    except ValueError as error:  # what gRPC raises on a closed channel
        raise errors.ClosedError(f"the channel is closed: {error}") from error
