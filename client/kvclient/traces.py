"""Send the traces of a process of ours where the usual variables of OpenTelemetry say."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from kvstore.core.errors import MissingExtraError

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def export_traces(service: str, environ: Mapping[str, str] | None = None) -> Callable[[], None]:
    """Begin to send spans by OTLP over gRPC if a variable names an endpoint; return what sends the last of them.

    Does nothing without an endpoint, and imports nothing. Raises MissingExtraError where OpenTelemetry is not installed.
    """
    environ = os.environ if environ is None else environ
    if not any(environ.get(name) for name in _ENDPOINTS) or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return lambda: None
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise MissingExtraError("traces need the extra 'otel': pip install 'kv-larder[otel]', or unset the endpoint") from error
    provider = TracerProvider(resource=Resource.create({"service.name": environ.get("OTEL_SERVICE_NAME", service)}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider.shutdown
