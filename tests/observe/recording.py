"""Record spans in memory for the length of a test."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


class Recorded:
    """The spans that ended since the start of a test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)

    def spans(self) -> list[ReadableSpan]:
        """Return them, in the order in which they ended."""
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> ReadableSpan:
        """Return the one of a name."""
        (span,) = [span for span in self.spans() if span.name == name]
        return span

    def trace_ids(self) -> set[int]:
        """Return the traces that they belong to."""
        return {span.context.trace_id for span in self.spans()}
