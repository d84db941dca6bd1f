"""One call on its way: the request it serves, and its span where somebody traces."""

from __future__ import annotations

from types import TracebackType

from kvclient.channel import Metadata
from kvclient.on_behalf import of_request
from kvstore.core import calling, tracing
from kvstore.core.errors import KVError


class Outgoing:
    """A context manager around a call and its retries, which belong to one request and one span.

    `metadata` says who calls, for which request (the current one, else a new one), and below which span.
    """

    def __init__(self, metadata: Metadata, request: object) -> None:
        request_id = calling.request_id() or calling.new_request_id()
        self._span = tracing.begin(f"larder.client.{_name(request)}", tracing.CLIENT, attributes={"larder.request": request_id})
        self.metadata = of_request(metadata, request_id, self._span.traceparent if self._span is not None else "")

    def __enter__(self) -> Outgoing:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._span is not None:
            code = error.code if isinstance(error, KVError) else "OK" if error is None else "CANCELLED"
            self._span.end(code)


def _name(request: object) -> str:
    """Return a call's name by its request: that of the message, or "Get" for the raw bytes that ask for a chunk."""
    return "Get" if isinstance(request, bytes) else type(request).__name__.removesuffix("Request")
