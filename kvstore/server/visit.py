"""One call of a gRPC server under way: in a context of its own, timed, and a span where somebody traces."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextvars import copy_context
from typing import ParamSpec, TypeVar

from kvstore.core import calling, tracing
from kvstore.server.observe.calls import OK, CallLog

P = ParamSpec("P")
T = TypeVar("T")
Metadata = Iterable[tuple[str, str | bytes]]
_LANE = "grpc"


class Visit:
    """What a call learns of its request, tenant and trace ends with it, whichever thread serves the next one. `end` it once."""

    def __init__(self, log: CallLog, name: str, metadata: Metadata) -> None:
        self._log, self._name, self._began = log, name, time.perf_counter()
        log.under_way.add(self)
        self._context = copy_context()
        self._span = self._context.run(_join, name, metadata)

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a step of the call."""
        return self._context.run(function, *args, **kwargs)

    def end(self, code: str = OK) -> None:
        """Note how the call ended."""
        self._log.under_way.discard(self)
        self._log.mine(_LANE)[self._name].add(time.perf_counter() - self._began, code)
        if self._span is not None:
            self._span.end(code)


def _join(name: str, metadata: Metadata) -> tracing.Ongoing | None:
    """Take over what the caller says of its request and trace."""
    parent = ""
    for key, value in metadata:
        if key == calling.REQUEST_KEY and isinstance(value, str):
            calling.join_request(value)
        elif key == tracing.TRACE_KEY and isinstance(value, str):
            parent = value
    if not tracing.is_on():
        return None
    span = tracing.begin(f"larder.{name}", tracing.SERVER, parent, {"larder.request": calling.request_id()})
    if span is not None:
        span.enter()
    return span
