"""Chunks that travel beside gRPC belong to the request and the trace that they were asked for in."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextvars import copy_context

import pytest

from kvclient.lanes.choice import LaneName
from kvclient.lanes.frames import Kind, pack_keys, parse_found, sealed
from kvclient.lanes.socket_frames import SocketFrames
from kvstore.core import calling, tracing
from kvstore.core.api import PutNote
from kvstore.core.errors import TierUnavailableError
from kvstore.server.grpc_server import RpcServer
from kvstore.server.service import StoreService
from tests.lanes.raw import greeted, soon, until
from tests.observe.recording import Recorded
from tests.server.chunks import key, make_blob, make_service
from tests.server.serving import dialing, serving

SMALL, LARGE = make_blob(1), make_blob(2, part_nbytes=100_000)
LANES: tuple[LaneName, ...] = ("tcp", "shm")


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """Record all spans of the test."""
    return Recorded(monkeypatch)


@pytest.fixture
def service() -> StoreService:
    """Return an empty store."""
    return make_service()


@pytest.fixture
def server(service: StoreService) -> Iterator[RpcServer]:
    """Serve it on all lanes."""
    with serving(service) as running:
        yield running


@pytest.mark.parametrize("lane", LANES)
def test_chunks_of_a_lane_are_moved_in_the_trace_of_their_caller(server: RpcServer, recorded: Recorded, lane: LaneName) -> None:
    """The store's spans stand below the caller's; they end behind the last byte of the answer."""
    names = {"tcp": ("larder.tcp.put", "larder.tcp.get"), "shm": ("larder.shm.put_staged", "larder.shm.view")}[lane]
    with dialing(server, lane=lane) as store:
        with tracing.span("caller"):
            store.put(LARGE, PutNote())
            reader = store.get(key(LARGE))
        assert reader is not None
        reader.close()
    caller = recorded.named("caller").context
    for name in names:
        until(lambda name=name: name in {span.name for span in recorded.spans()})  # type: ignore[misc]
        served = recorded.named(name)
        assert served.parent is not None
        assert (served.context.trace_id, served.parent.span_id) == (caller.trace_id, caller.span_id)


@pytest.mark.parametrize("lane", LANES)
def test_a_connection_that_serves_another_caller_forgets_the_trace(server: RpcServer, recorded: Recorded, lane: LaneName) -> None:
    """What belongs to no trace begins none."""
    with dialing(server, lane=lane) as store:
        with tracing.span("caller"):
            assert store.get(key(SMALL)) is None
        for _ in range(2):  # the second is answered when the span of the first would have ended
            assert store.get(key(SMALL)) is None
    assert len([span for span in recorded.spans() if span.name.startswith(f"larder.{lane}.")]) == 1


@pytest.mark.parametrize("lane", LANES)
def test_a_miss_of_a_lane_names_the_request_that_met_it(server: RpcServer, service: StoreService, lane: LaneName) -> None:
    """Whether anybody traces or not."""

    def ask() -> str:
        request = calling.begin_request()
        with dialing(server, lane=lane) as store:
            assert store.get(key(SMALL)) is None
        return request

    request = copy_context().run(ask)
    assert [note.request_id for note in service.bind("alpha").tally.misses] == [request]


@pytest.mark.parametrize("lane", LANES)
def test_who_names_what_is_no_span_is_hung_up_on(server: RpcServer, lane: LaneName) -> None:
    """Without an answer, since none is awaited."""
    with greeted(server, lane) as frames:
        frames.send(Kind.ON_BEHALF, sealed(b"\0\x09no-span-9"), soon())
        with pytest.raises(TierUnavailableError):
            frames.receive(soon())


def test_on_whose_behalf_is_said_when_it_changes_and_not_of_nobody() -> None:
    """A request costs no byte more where nobody names one, and one that asks again says it once."""
    ours, theirs = socket.socketpair()
    asking, served = SocketFrames(ours, "store"), SocketFrames(theirs, "client")

    def told(request: str) -> list[Kind]:
        calling.join_request(request)
        asking.ask(Kind.GET, b"", soon())
        kinds = [served.receive(soon())[0]]
        while kinds[-1] is not Kind.GET:
            kinds.append(served.receive(soon())[0])
        return kinds

    said = [copy_context().run(told, request) for request in ("", "request-1", "request-1", "request-2", "")]
    asking.close()
    served.close()
    assert [len(kinds) for kinds in said] == [1, 2, 1, 2, 2]


def test_requests_of_nobody_are_served(server: RpcServer) -> None:
    """As those of a client that knows of no traces."""
    with greeted(server, "tcp") as frames:
        frames.send(Kind.GET, pack_keys([key(SMALL)]), soon())
        head, _ = frames.expect(Kind.FOUND, soon())
    assert parse_found(head, 1)[0].text == "never_stored"
