"""One call of a server under way: in a context of its own, timed, and a span where somebody traces."""

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


class Work:
    """What is done for one request of a caller: what it learns of request, tenant and trace ends with it. `end` it once.

    Parameters
    ----------
    request_id : str
        The request that the caller names; what is no id is ignored.
    name : str
        Of the span that it is where this program traces; "" for none.
    parent : str
        The caller's span as it travelled; "" begins a trace.
    """

    def __init__(self, request_id: str, name: str, parent: str) -> None:
        self._context = copy_context()
        self._span = self._context.run(_join, request_id, name, parent)

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a step of it."""
        return self._context.run(function, *args, **kwargs)

    def end(self, code: str = OK) -> None:
        """Note how it ended."""
        if self._span is not None:
            self._span.end(code)


class Visit:
    """One call of a gRPC server; whichever thread serves the next one knows nothing of it. `end` it once."""

    def __init__(self, log: CallLog, name: str, metadata: Metadata) -> None:
        self._log, self._name, self._began = log, name, time.perf_counter()
        log.under_way.add(self)
        told = {key: value for key, value in metadata if isinstance(value, str)}
        self._work = Work(told.get(calling.REQUEST_KEY, ""), f"larder.{name}", told.get(tracing.TRACE_KEY, ""))

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a step of the call."""
        return self._work.run(function, *args, **kwargs)

    def end(self, code: str = OK) -> None:
        """Note how the call ended."""
        self._log.under_way.discard(self)
        self._log.mine(_LANE)[self._name].add(time.perf_counter() - self._began, code)
        self._work.end(code)


def _join(request_id: str, name: str, parent: str) -> tracing.Ongoing | None:
    """Take over what the caller says of its request and trace."""
    calling.join_request(request_id)
    span = tracing.begin(name, tracing.SERVER, parent, {"larder.request": calling.request_id()}) if name else None
    if span is not None:
        span.enter()
    return span
