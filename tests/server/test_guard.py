"""A client that says nothing holds nothing for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import grpc
import pytest

from kvclient.channel import bearer
from kvclient.lanes.frames import pack_keys
from kvclient.lanes.grpc_lane import FETCH
from kvclient.retry import Retry
from kvstore.core.api import PutNote
from kvstore.server.config import ServerConfig
from kvstore.server.grpc_server import RpcServer
from kvstore.server.guard import SilenceWatch
from tests.server.chunks import key, make_blob, make_service
from tests.server.raw import Put, body_of, get_on, head_of, put_on
from tests.server.serving import TOKENS, dialing, serving

IDENTITY = bearer(TOKENS["alpha"])
LARGE = make_blob(1, part_nbytes=1 << 18)
STUBBORN = Retry(attempts=100, longest_pause_s=0.1, seed=1)
IMPATIENT = ServerConfig(address="127.0.0.1:0", max_workers=8, idle_timeout_s=0.3, drain_s=0.5)


class FakeClock:
    """Seconds that pass when told."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class FakeCall:
    """A call that remembers being cancelled."""

    is_cancelled = False

    def cancel(self) -> None:
        """Remember."""
        self.is_cancelled = True


@pytest.fixture
def clock() -> FakeClock:
    """The watch's clock."""
    return FakeClock()


def test_a_call_is_cut_when_its_silence_reaches_the_timeout(clock: FakeClock) -> None:
    """And not before."""
    watch, call = SilenceWatch(10.0, busy_at=5, clock=clock), FakeCall()
    watch.begin(call)
    clock.now_s = 9.9
    assert watch.cut() == 0
    clock.now_s = 10.0
    assert watch.cut() == 1
    assert call.is_cancelled


def test_a_call_that_goes_on_is_not_cut(clock: FakeClock) -> None:
    """Each message starts the wait anew."""
    watch, call = SilenceWatch(10.0, busy_at=5, clock=clock), FakeCall()
    for _ in range(5):
        watch.begin(call)
        clock.now_s += 9.0
        watch.cut()
        watch.end(call)
    assert not call.is_cancelled


def test_a_call_that_is_not_waiting_for_its_client_is_not_cut(clock: FakeClock) -> None:
    """A slow store is not the client's fault."""
    watch, call = SilenceWatch(10.0, busy_at=5, clock=clock), FakeCall()
    watch.begin(call)
    watch.end(call)
    clock.now_s = 100.0
    assert watch.cut() == 0


def test_a_busy_server_bears_one_second_of_silence(clock: FakeClock) -> None:
    """When threads run short, those who use theirs keep them."""
    watch, calls = SilenceWatch(10.0, busy_at=3, clock=clock), [FakeCall() for _ in range(3)]
    watch.begin(calls[0])
    watch.begin(calls[1])
    clock.now_s = 0.5
    watch.begin(calls[2])
    clock.now_s = 1.0
    assert watch.cut() == 2
    assert [call.is_cancelled for call in calls] == [True, True, False]


@pytest.fixture
def server() -> Iterator[RpcServer]:
    """A server with eight threads that bears 0.3 s of silence."""
    with serving(make_service(), IMPATIENT) as running:
        yield running


def hold(stack: ExitStack, server: RpcServer) -> grpc.Channel:
    """Return a connection of its own, open until the stack closes."""
    return stack.enter_context(grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]))


def silence(first: list[bytes], end: threading.Event) -> Iterator[bytes]:
    """Send what is given and then nothing until the end of the test."""
    yield from first
    end.wait(20)


HALVES = {"no bytes": [head_of(LARGE)], "half of the bytes": [head_of(LARGE), body_of(LARGE)[: 1 << 18]], "no note": []}


@pytest.mark.parametrize("first", HALVES.values(), ids=HALVES.keys())
def test_fifty_silent_puts_do_not_stop_the_next_client(server: RpcServer, first: list[bytes]) -> None:
    """Each announces a chunk and goes silent; there are eight threads."""
    blob, end = make_blob(), threading.Event()
    with ExitStack() as stack:
        stack.callback(end.set)
        put = put_on(hold(stack, server))
        calls = [put.future(silence(first, end), metadata=IDENTITY) for _ in range(50)]
        with dialing(server, retry=STUBBORN, lane="grpc") as honest:
            assert honest.put(blob, PutNote()).stored
        for call in calls:
            call.cancel()


@pytest.mark.parametrize("name", ["/kvproto.v1.StoreService/Lookup", FETCH])
def test_silent_calls_of_methods_with_one_request_do_not_stop_the_next_client(server: RpcServer, name: str) -> None:
    """A client may open a lookup and never send its request."""
    end = threading.Event()
    with ExitStack() as stack:
        stack.callback(end.set)
        channel = stack.enter_context(grpc.insecure_channel(server.address))
        method: Put = channel.stream_unary(name)
        calls = [method.future(silence([], end), metadata=IDENTITY) for _ in range(20)]
        with dialing(server, retry=STUBBORN) as honest:
            assert honest.lookup([]) == []
        for call in calls:
            call.cancel()


def test_readers_that_do_not_read_are_cut_and_give_their_bytes_back(server: RpcServer) -> None:
    """The server waits for room to send, for a while."""
    blob = make_blob(part_nbytes=2_500_000)
    request = pack_keys([key(blob)])
    with ExitStack() as stack, dialing(server, retry=STUBBORN, lane="grpc") as honest:
        honest.put(blob, PutNote())
        streams = [get_on(hold(stack, server))(request, metadata=IDENTITY) for _ in range(8)]
        for stream in streams:
            next(stream)
        assert honest.stats().tiers
        deadline = time.monotonic() + 10
        while server.budget.lent_bytes and time.monotonic() < deadline:
            threading.Event().wait(0.02)
        assert server.budget.lent_bytes == 0


def test_a_silent_put_learns_that_it_was_cut(server: RpcServer) -> None:
    """As a status that may be tried again, after the timeout and not much later."""
    end = threading.Event()
    with ExitStack() as stack:
        stack.callback(end.set)
        start_s = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            put_on(hold(stack, server))(silence([head_of(LARGE)], end), metadata=IDENTITY, timeout=10)
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() is grpc.StatusCode.CANCELLED
        assert time.monotonic() - start_s < 5


def test_transfers_beyond_the_byte_budget_are_refused_and_succeed_later() -> None:
    """Two silent puts hold the whole budget; the third client gets through once they are cut."""
    blob, end = make_blob(part_nbytes=200_000), threading.Event()
    config = ServerConfig(address="127.0.0.1:0", idle_timeout_s=0.4, drain_s=0.5, max_inflight_bytes=2 * len(LARGE), max_blob_bytes=1 << 20)
    with serving(make_service(), config) as running, ExitStack() as stack:
        stack.callback(end.set)
        put = put_on(hold(stack, running))
        calls = [put.future(silence([head_of(LARGE)], end), metadata=IDENTITY) for _ in range(2)]
        while running.budget.lent_bytes < 2 * len(LARGE):
            threading.Event().wait(0.01)
        with dialing(running, retry=STUBBORN, lane="grpc") as honest:
            assert honest.put(blob, PutNote()).stored
        for call in calls:
            call.cancel()
