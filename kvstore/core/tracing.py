"""Spans of OpenTelemetry where the program uses it; where it does not, a look into a dictionary and nothing else.

Nothing here imports it: a program that traces has `opentelemetry.trace` loaded, and whoever wants traces from our processes says where to
send them. Between processes a span travels as W3C Trace Context (www.w3.org/TR/trace-context, section 3.2).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")
Attributes = Mapping[str, str | int | float | bool]

TRACE_KEY = "traceparent"  # the metadata in which a span travels
CLIENT, SERVER, INTERNAL = "CLIENT", "SERVER", "INTERNAL"
_API = "opentelemetry.trace"
_NOTHING: AbstractContextManager[Any] = nullcontext()
_TRACEPARENT = re.compile("(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


class Ongoing:
    """A span that is ended elsewhere than it was begun; end it once."""

    def __init__(self, api: Any, span: Any) -> None:
        self._api, self._span = api, span

    @property
    def traceparent(self) -> str:
        """The span as it travels; "" for one that nobody records and that belongs to no trace."""
        return _write(self._span)

    def enter(self) -> None:
        """Make it the parent of what this context does from now on."""
        sys.modules["opentelemetry.context"].attach(self._api.set_span_in_context(self._span))

    def end(self, code: str = "OK") -> None:
        """End it; any code but OK marks it as failed."""
        if code != "OK":
            self._span.set_status(self._api.StatusCode.ERROR, code)
        self._span.end()


def is_on() -> bool:
    """Tell whether this program traces."""
    return _API in sys.modules


def span(name: str, attributes: Attributes | None = None) -> AbstractContextManager[Any]:
    """Return a context manager around one step, the parent of the steps within it; it gives OpenTelemetry's span, or None."""
    api = sys.modules.get(_API)
    if api is None:
        return _NOTHING
    started: AbstractContextManager[Any] = api.get_tracer("larder").start_as_current_span(name, attributes=attributes)
    return started


def inner(name: str, attributes: Attributes | None = None) -> AbstractContextManager[Any]:
    """Return what `span` does where there is a current span, and nothing elsewhere: for steps that are no story of their own."""
    return span(name, attributes) if is_on() and traceparent() else _NOTHING


@contextmanager
def apart(name: str) -> Iterator[None]:
    """Span a block that is left and entered again, as a generator's: below the current span, and never the current one itself."""
    begun = begin(name, INTERNAL)
    try:
        yield
    finally:
        if begun is not None:
            begun.end()


def begin(name: str, kind: str, parent: str = "", attributes: Attributes | None = None) -> Ongoing | None:
    """Begin a span that ends elsewhere: below `parent` as it travelled, else below the current one; None where nobody traces."""
    api = sys.modules.get(_API)
    if api is None:
        return None
    context = _read(api, parent) if parent else None
    return Ongoing(api, api.get_tracer("larder").start_span(name, context, api.SpanKind[kind], attributes))


def traceparent() -> str:
    """Return the current span as it travels; "" where there is none."""
    api = sys.modules.get(_API)
    return _write(api.get_current_span()) if api is not None else ""


def is_traceparent(text: str) -> bool:
    """Tell whether a text from elsewhere names a span as one travels: 55 characters in all."""
    return _TRACEPARENT.fullmatch(text) is not None


def trace_id() -> str:
    """Return the 32 hex digits of the current trace; "" where there is none."""
    return traceparent()[3:35]


def carried(function: Callable[[], T]) -> Callable[[], T]:
    """Return the function so that another thread runs it for this one's request, tenant and trace."""
    return partial(copy_context().run, function)


def _write(span: Any) -> str:
    told = span.get_span_context()
    return f"00-{told.trace_id:032x}-{told.span_id:016x}-{int(told.trace_flags):02x}" if told.is_valid else ""


def _read(api: Any, text: str) -> Any:
    """Return the context of a span elsewhere; None for a text that tells of none."""
    found = _TRACEPARENT.fullmatch(text)
    if not found:
        return None
    trace, parent, flags = (int(digits, 16) for digits in found.groups())
    told = api.SpanContext(trace, parent, is_remote=True, trace_flags=api.TraceFlags(flags & 1))
    return api.set_span_in_context(api.NonRecordingSpan(told)) if told.is_valid else None
