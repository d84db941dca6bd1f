"""What goes with a call beside who calls: the request that it serves, and the span that it belongs to."""

from __future__ import annotations

from kvclient.channel import Metadata
from kvstore.core import calling, tracing


def on_behalf(metadata: Metadata) -> Metadata:
    """Return the metadata of a call with the request's id and the current span; the same where there are none."""
    request, parent = calling.request_id(), tracing.traceparent()
    if request:
        metadata = (*metadata, (calling.REQUEST_KEY, request))
    return (*metadata, (tracing.TRACE_KEY, parent)) if parent else metadata


def of_request(metadata: Metadata, request: str, parent: str) -> Metadata:
    """Return the metadata of a call that begins a request; `parent` is the span that it is, "" where nobody traces."""
    told = (*metadata, (calling.REQUEST_KEY, request))
    return (*told, (tracing.TRACE_KEY, parent)) if parent else told
