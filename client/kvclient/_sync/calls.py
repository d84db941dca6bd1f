# Written by client/generate_sync.py from kvclient/_async/calls.py; change that file and run it again.
"""Calls over one channel: identity and deadline on each, typed errors, and retries until the first message has come."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import grpc

from kvclient.attempts import Attempts
from kvclient.channel import Metadata
from kvclient.outgoing import Outgoing
from kvclient.retry import Deadline, Retry
from kvclient.status import to_error
from kvclient.turns import Turns
from kvstore.core.errors import InvalidInputError

Request = TypeVar("Request")
Response = TypeVar("Response")


class Calls:
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
        Whom to ask; after such an error, the next one.
    """

    def __init__(self, metadata: Metadata, timeout_s: float, retry: Retry, turns: Turns) -> None:
        self._metadata, self._timeout_s, self._retry, self._turns = metadata, timeout_s, retry, turns
        self.deadline(timeout_s)  # a timeout that can't be is refused here rather than at the first call

    def deadline(self, timeout_s: float | None) -> Deadline:
        """Return the deadline of what begins now; a timeout that is not above 0 and finite raises InvalidInputError."""
        seconds = self._timeout_s if timeout_s is None else timeout_s
        if not (seconds > 0 and math.isfinite(seconds)):
            raise InvalidInputError(f"timeout_s must be a number of seconds above 0, got {seconds!r}")
        return Deadline.after(seconds)

    def one(
        self, method_of: Callable[[str], grpc.UnaryUnaryMultiCallable[Request, Response]], request: Request, timeout_s: float | None
    ) -> Response:
        """Return the response of a call that answers once; `method_of` gives the method at an address."""
        attempts = Attempts(self._retry, self.deadline(timeout_s))
        with Outgoing(self._metadata, request) as sent:
            while True:
                address = self._turns.current
                try:
                    return method_of(address)(request, timeout=attempts.left_s(), metadata=sent.metadata)
                except grpc.RpcError as failure:
                    pause_s = attempts.pause_s(to_error(failure))
                self._turns.failed(address)
                time.sleep(pause_s)

    def stream(
        self, method_of: Callable[[str], grpc.UnaryStreamMultiCallable[Request, Response]], request: Request, timeout_s: float | None
    ) -> Generator[Response, None, None]:
        """Iterate over the responses of a call that answers with a stream; closing the iterator cancels the call."""
        attempts, has_begun = Attempts(self._retry, self.deadline(timeout_s)), False
        with Outgoing(self._metadata, request) as sent:
            while True:
                address = self._turns.current
                call: Any = method_of(address)(request, timeout=attempts.left_s(), metadata=sent.metadata)
                try:
                    for response in call:
                        has_begun = True
                        yield response
                    return
                except grpc.RpcError as failure:
                    error = to_error(failure)
                    if has_begun:
                        raise error from failure
                    pause_s = attempts.pause_s(error)
                finally:
                    call.cancel()
                self._turns.failed(address)
                time.sleep(pause_s)
