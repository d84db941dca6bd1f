"""One call of a gRPC server under way: in a context of its own, counted, and a span where somebody traces."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import copy_context
from typing import ParamSpec, TypeVar

from kvstore.core import calling, tracing
from kvstore.server.observe.calls import OK, CallLog

P = ParamSpec("P")
T = TypeVar("T")
Metadata = Iterable[tuple[str, str | bytes]]


class Visit:
    """What a call learns of its request, tenant and trace ends with it, whichever thread serves the next one. `end` it once."""

    def __init__(self, log: CallLog, name: str, metadata: Metadata) -> None:
        self._log, self._name, self._began = log, name, log.begin()
        self._context = copy_context()
        self._span = self._context.run(_join, name, metadata)

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a step of the call."""
        return self._context.run(function, *args, **kwargs)

    def end(self, code: str = OK) -> None:
        """Note how the call ended."""
        self._log.end("grpc", self._name, self._began, code)
        if self._span is not None:
            self._span.end(code)


def _join(name: str, metadata: Metadata) -> tracing.Ongoing | None:
    """Take over what the caller says of its request and trace."""
    told = {key: value for key, value in metadata if isinstance(value, str)}
    calling.join_request(told.get(calling.REQUEST_KEY, ""))
    span = tracing.begin(f"larder.{name}", tracing.SERVER, told.get(tracing.TRACE_KEY, ""), {"larder.request": calling.request_id()})
    if span is not None:
        span.enter()
    return span
