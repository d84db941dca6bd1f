"""How many connections a lane serves, which of them gives way, and what a client's pool of them does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kvclient.lanes.connections import Connections
from kvclient.lanes.frames import Kind, pack_keys
from kvclient.lanes.socket_frames import SocketFrames
from kvstore.core.api import PutNote
from kvstore.core.errors import ClosedError, DeadlineError, KVError, TierUnavailableError
from kvstore.server.config import LanesConfig
from kvstore.server.grpc_server import RpcServer
from tests.lanes.raw import SOCKETS, connect, doors_of, greeted, is_hung_up, offer, soon, until
from tests.server.chunks import key, make_blob, make_service
from tests.server.raw import body_of, head_of
from tests.server.serving import LOOPBACK, dialing, serving
from tests.server.ways import parts_of, read

BLOB = make_blob()
LARGE = make_blob(1, part_nbytes=600_000)
MOST = 3


@pytest.fixture
def server() -> Iterator[RpcServer]:
    """A server that serves three connections per lane."""
    service = make_service()
    service.bind("alpha").put(BLOB, PutNote())
    with serving(service, replace(LOOPBACK, lanes=LanesConfig(shm="on", max_connections=MOST))) as running:
        yield running


@pytest.fixture(params=SOCKETS)
def lane(request: pytest.FixtureRequest) -> str:
    """The lane that is full."""
    return str(request.param)


def n_connections(server: RpcServer) -> int:
    """Return how many connections showed their tickets."""
    return doors_of(server).n_connections


def can_ask(frames: SocketFrames, lane: str) -> bool:
    """Tell whether a connection is still served."""
    try:
        frames.send(Kind.VIEW if lane == "shm" else Kind.GET, pack_keys([]), soon())
        frames.receive(soon())
    except KVError:
        return False
    return True


def test_the_connection_that_was_idle_for_longest_gives_way(server: RpcServer, lane: str) -> None:
    """Its client opens another when it needs one."""
    with greeted(server, lane) as first, greeted(server, lane) as second, greeted(server, lane) as third:
        until(lambda: n_connections(server) == MOST)
        assert can_ask(first, lane)
        with greeted(server, lane) as fourth:
            assert [can_ask(each, lane) for each in (second, fourth, first, third)] == [False, True, True, True]


def test_one_that_showed_no_ticket_gives_way_before_any_other(server: RpcServer, lane: str) -> None:
    """And not a client that is known."""
    with greeted(server, lane) as first, greeted(server, lane) as second:
        until(lambda: n_connections(server) == MOST - 1)
        silent = connect(offer(server), lane)
        with greeted(server, lane) as third:
            assert is_hung_up(silent)
            assert all(can_ask(each, lane) for each in (first, second, third))
        silent.close()


def test_no_connection_gives_way_in_the_middle_of_its_work(server: RpcServer, lane: str) -> None:
    """One more is refused; it is a typed error, and there is room again when the work is done."""
    with greeted(server, lane) as first, greeted(server, lane) as second, greeted(server, lane) as third:
        for each in (first, second, third):
            each.send(Kind.PUT, head_of(LARGE), soon(), body_of(LARGE)[:100], body_nbytes=len(body_of(LARGE)))
        until(lambda: server.budget.lent_bytes == MOST * len(body_of(LARGE)))
        refused = connect(offer(server), lane)
        assert is_hung_up(refused)
        refused.close()
        with dialing(server, lane="shm" if lane == "shm" else "tcp") as remote, pytest.raises(TierUnavailableError):
            remote.get(key(BLOB))
    until(lambda: n_connections(server) == 0)
    with dialing(server, lane="shm" if lane == "shm" else "tcp") as remote:
        assert read(remote, BLOB) == parts_of(BLOB)


def test_a_client_that_was_sent_away_comes_back_by_itself(server: RpcServer, lane: str) -> None:
    """It finds its connection closed and dials again."""
    with dialing(server, lane="shm" if lane == "shm" else "tcp") as remote:
        assert read(remote, BLOB) == parts_of(BLOB)
        with greeted(server, lane), greeted(server, lane), greeted(server, lane):
            until(lambda: n_connections(server) == MOST)
            time.sleep(0.11)  # a connection that was used just now is taken without a look at it
            assert read(remote, BLOB) == parts_of(BLOB)


class Plug:
    """A connection that does nothing."""

    is_closed = False
    owes_answer = False
    is_alive = True

    def is_sound(self) -> bool:
        """Tell what the test says."""
        return self.is_alive

    def close(self) -> None:
        """Remember."""
        self.is_closed = True


def pool_of(capacity: int) -> tuple[Connections[Plug], list[Plug]]:
    """Return a pool, and what it opened."""
    opened: list[Plug] = []

    def dial(deadline: float) -> Plug:
        opened.append(Plug())
        return opened[-1]

    return Connections(dial, capacity), opened


def test_a_connection_is_used_again() -> None:
    """The one that was used last is the warmest."""
    pool, opened = pool_of(4)
    first, second = pool.take(soon()), pool.take(soon())
    pool.give(first)
    pool.give(second)
    assert pool.take(soon()) is second
    assert len(opened) == 2


def test_a_connection_that_owes_an_answer_is_not_used_again() -> None:
    """Its next byte is another caller's."""
    pool, _ = pool_of(4)
    first = pool.take(soon())
    first.owes_answer = True
    pool.give(first)
    assert first.is_closed
    assert pool.take(soon()) is not first


def test_who_finds_all_in_use_waits_until_one_comes_back() -> None:
    """Or until the deadline."""
    pool, opened = pool_of(1)
    first = pool.take(soon())
    with pytest.raises(DeadlineError, match="1 connections"):
        pool.take(time.monotonic() + 0.01)
    timer = threading.Timer(0.02, lambda: pool.give(first))
    timer.start()
    assert pool.take(soon()) is first
    timer.join()
    assert len(opened) == 1


def test_a_dial_that_fails_leaves_room_for_the_next() -> None:
    """However often."""
    outcomes = iter([TierUnavailableError("down"), DeadlineError("late"), Plug()])

    def dial(deadline: float) -> Plug:
        outcome = next(outcomes)
        if isinstance(outcome, KVError):
            raise outcome
        return outcome

    pool = Connections(dial, 1)
    for error in (TierUnavailableError, DeadlineError):
        with pytest.raises(error):
            pool.take(soon())
    assert isinstance(pool.take(soon()), Plug)


def test_closing_wakes_whoever_waits_and_closes_what_is_in_use() -> None:
    """With an error that says so."""
    pool, opened = pool_of(1)
    pool.take(soon())
    timer = threading.Timer(0.02, pool.close)
    timer.start()
    with pytest.raises(ClosedError, match="closed"):
        pool.take(soon())
    timer.join()
    assert opened[0].is_closed
