"""Spans across processes, and none where nobody traces."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest
from opentelemetry.trace import StatusCode

from kvclient.remote import RemoteStore
from kvclient.retry import Retry
from kvclient.traces import export_traces
from kvstore.core import tracing
from kvstore.core.errors import AuthError
from kvstore.store.memory import MemoryTier
from kvstore.store.traced import TracedTier
from tests.observe.recording import Recorded
from tests.server.chunks import key, make_blob, make_service
from tests.server.serving import dialing, serving

PARENT = f"00-{'a' * 32}-{'b' * 16}-01"


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """Record all spans of the test."""
    return Recorded(monkeypatch)


def test_a_program_that_does_not_trace_never_imports_it() -> None:
    """Neither does the client, with all that it does."""
    code = (
        "import sys; from kvstore.core import tracing; import kvclient.remote, kvclient._sync.client\n"
        "with tracing.span('x') as span: assert span is None\n"
        "assert tracing.begin('x', tracing.CLIENT) is None and tracing.traceparent() == ''\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_store_continues_the_trace_of_its_caller(recorded: Recorded) -> None:
    """One trace, and the store's span below the caller's."""
    with serving(make_service()) as server, dialing(server) as store, tracing.span("caller"):
        store.lookup([key(make_blob(1))])
    caller, served = recorded.named("caller"), recorded.named("larder.Lookup")
    assert served.context.trace_id == caller.context.trace_id
    assert served.parent is not None
    assert served.parent.span_id == caller.context.span_id


def test_calls_of_one_thread_do_not_leak_their_trace_into_the_next(recorded: Recorded) -> None:
    """A server's threads serve one call after the other."""
    with serving(make_service()) as server, dialing(server) as store:
        with tracing.span("caller"):
            store.lookup([key(make_blob(1))])
        for _ in range(5):
            store.stats()
    first = recorded.named("caller").context.trace_id
    others = [span for span in recorded.spans() if span.name == "larder.Stats"]
    assert len(others) == 5
    assert all(span.parent is None and span.context.trace_id != first for span in others)


def test_a_call_that_fails_is_a_span_that_failed(recorded: Recorded) -> None:
    """With its status."""
    with serving(make_service()) as server:
        store = RemoteStore(server.address, "a token that nobody has", retry=Retry(attempts=1))
        with pytest.raises(AuthError):
            store.stats()
        store.close()
    status = recorded.named("larder.Stats").status
    assert (status.status_code, status.description) == (StatusCode.ERROR, "UNAUTHENTICATED")


def test_the_threads_of_a_tier_belong_to_the_request(recorded: Recorded) -> None:
    """A remote tier is asked on another thread."""
    tier = TracedTier(MemoryTier(1 << 20))
    with ThreadPoolExecutor(1) as pool, tracing.span("request"):
        pool.submit(tracing.carried(lambda: tier.find([bytes(32)]))).result()
    assert recorded.named("larder.memory.find").context.trace_id == recorded.named("request").context.trace_id


def test_a_call_of_a_tier_that_belongs_to_no_trace_begins_none(recorded: Recorded) -> None:
    """Writing behind would otherwise fill the list of traces."""
    TracedTier(MemoryTier(1 << 20)).find([bytes(32)])
    assert recorded.spans() == []


def test_a_span_that_travelled_is_the_parent_of_what_is_begun_below_it(recorded: Recorded) -> None:
    """By the W3C's text."""

    def serve() -> str:
        begun = tracing.begin("served", tracing.SERVER, PARENT)
        assert begun is not None
        begun.enter()
        begun.end("UNAVAILABLE")
        return tracing.trace_id()

    assert copy_context().run(serve) == "a" * 32
    served = recorded.named("served")
    assert served.parent is not None
    assert served.parent.span_id == int("b" * 16, 16)
    assert (served.status.status_code, served.status.description) == (StatusCode.ERROR, "UNAVAILABLE")


@pytest.mark.parametrize(
    "text",
    [
        *("", "nonsense", PARENT + "-more", PARENT.upper(), f"ff{PARENT[2:]}", "00-" + "a" * 10_000),
        *(f"00-{'0' * 32}-{'b' * 16}-01", f"00-{'a' * 32}-{'0' * 16}-01"),
    ],
    ids=lambda text: text[:40],
)
def test_a_text_that_tells_of_no_span_begins_a_trace_of_its_own(recorded: Recorded, text: str) -> None:
    """It came from outside; a call must not fail for it."""

    def serve() -> None:
        begun = tracing.begin("served", tracing.SERVER, text)
        assert begun is not None
        begun.end()

    copy_context().run(serve)
    assert recorded.named("served").parent is None


def test_nothing_is_sent_without_an_endpoint() -> None:
    """And OpenTelemetry stays as it is."""
    export_traces("test", {})()
    export_traces("test", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317", "OTEL_SDK_DISABLED": "true"})()
