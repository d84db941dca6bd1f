"""Tickets: one connection of one tenant, once, and soon."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator

import pytest

from kvclient.lanes.frames import FRAME, MAX_HEAD_NBYTES, Kind, pack_keys, parse_found, parse_placed
from kvclient.lanes.socket_frames import SocketFrames
from kvstore.core.api import PutNote, Status
from kvstore.core.errors import AuthError, CapacityError, TierUnavailableError
from kvstore.server.access.auth import Identity
from kvstore.server.grpc_server import RpcServer
from kvstore.server.lanes import tickets as tickets_module
from kvstore.server.lanes.tickets import LIFETIME_S, TICKET_NBYTES, Tickets
from tests.lanes.raw import SOCKETS, connect, greeted, is_hung_up, offer, soon
from tests.server.chunks import key, make_blob, make_service
from tests.server.serving import dialing, serving

BLOB = make_blob()


class Clock:
    """Seconds that pass when told."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def server() -> Iterator[RpcServer]:
    """A server with a chunk of tenant alpha."""
    service = make_service()
    service.bind("alpha").put(BLOB, PutNote())
    with serving(service) as running:
        yield running


@pytest.fixture(params=SOCKETS)
def lane(request: pytest.FixtureRequest) -> str:
    """The lane that is knocked at."""
    return str(request.param)


def show(server: RpcServer, lane: str, ticket: bytes) -> SocketFrames:
    """Connect and show a ticket."""
    frames = SocketFrames(connect(offer(server), lane), lane)
    frames.reads_ahead = False
    frames.send(Kind.HELLO, ticket, soon())
    return frames


def is_refused(server: RpcServer, lane: str, ticket: bytes) -> bool:
    """Tell whether a ticket is answered by an AuthError and nothing more."""
    frames = show(server, lane, ticket)
    try:
        with pytest.raises(AuthError, match="ask for another"):
            frames.expect(Kind.WELCOME, soon())
        with pytest.raises(TierUnavailableError):
            frames.expect(Kind.WELCOME, soon())
    finally:
        frames.close()
    return True


def test_a_ticket_is_worth_one_connection() -> None:
    """Whoever overhears it comes too late."""
    tickets = Tickets()
    ticket = tickets.issue(Identity("alpha"))
    assert tickets.redeem(ticket).tenant == "alpha"
    with pytest.raises(AuthError):
        tickets.redeem(ticket)


def test_a_ticket_that_many_show_at_once_lets_one_in() -> None:
    """There is no moment between the look and the taking."""
    tickets, outcomes = Tickets(), []
    ticket, start = tickets.issue(Identity("alpha")), threading.Barrier(8)

    def redeem() -> None:
        start.wait()
        try:
            outcomes.append(tickets.redeem(ticket).tenant)
        except AuthError:
            outcomes.append("refused")

    threads = [threading.Thread(target=redeem) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["alpha"] + ["refused"] * 7


def test_a_ticket_is_worth_nothing_when_its_time_is_over() -> None:
    """And not a moment earlier."""
    clock = Clock()
    tickets = Tickets(clock=clock)
    kept, late = tickets.issue(Identity("alpha")), tickets.issue(Identity("alpha"))
    clock.now_s += LIFETIME_S - 0.01
    assert tickets.redeem(kept).tenant == "alpha"
    clock.now_s += 0.01
    with pytest.raises(AuthError):
        tickets.redeem(late)


def test_tickets_that_nobody_uses_are_bounded_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that only asks fills no memory."""
    monkeypatch.setattr(tickets_module, "MAX_TICKETS", 3)
    clock = Clock()
    tickets = Tickets(clock=clock)
    for _ in range(3):
        tickets.issue(Identity("alpha"))
    with pytest.raises(CapacityError, match="3 tickets"):
        tickets.issue(Identity("beta"))
    clock.now_s += LIFETIME_S
    assert tickets.redeem(tickets.issue(Identity("beta"))).tenant == "beta"


@pytest.mark.parametrize("ticket", [b"", bytes(TICKET_NBYTES), b"x" * (TICKET_NBYTES - 1)], ids=["none", "forged", "short"])
def test_a_ticket_that_nobody_issued_is_refused(server: RpcServer, lane: str, ticket: bytes) -> None:
    """By a typed answer, and the connection ends."""
    assert is_refused(server, lane, ticket)


def test_a_ticket_that_was_used_is_refused_on_every_lane(server: RpcServer, lane: str) -> None:
    """A replay of what was sent opens nothing."""
    ticket = offer(server).ticket
    used = show(server, lane, ticket)
    assert used.expect(Kind.WELCOME, soon())
    assert all(is_refused(server, other, ticket) for other in SOCKETS)
    used.close()


def test_a_ticket_opens_the_store_of_its_tenant_only(server: RpcServer, lane: str) -> None:
    """The tenant is the ticket's; a connection can't say another."""
    ask, told, parse = (Kind.VIEW, Kind.PLACED, parse_placed) if lane == "shm" else (Kind.GET, Kind.FOUND, parse_found)
    found = {}
    for tenant in ("alpha", "beta"):
        with greeted(server, lane, tenant) as frames:
            frames.send(ask, pack_keys([key(BLOB)]), soon())
            found[tenant] = parse(frames.expect(told, soon())[0], 1)[0].status
    assert found == {"alpha": Status.READY, "beta": Status.ABSENT}


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.HELLO], ids=lambda kind: kind.name)
def test_nothing_is_answered_before_a_ticket_was_shown(server: RpcServer, lane: str, kind: Kind) -> None:
    """Whatever is asked first, the connection ends; an ERROR too is no greeting."""
    connection = connect(offer(server), lane)
    connection.sendall(struct.pack("<4sB3xIQ", b"KVL1", kind, 8, 0) + bytes(8))
    while not is_hung_up(connection):
        pass
    connection.close()
    with dialing(server) as honest:
        assert honest.get(key(BLOB)) is not None


def test_no_memory_is_taken_for_a_head_before_a_ticket_was_shown(server: RpcServer, lane: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame of 20 bytes may announce 4 MiB."""
    taken: list[int] = []
    take = SocketFrames._take

    def watched(frames: SocketFrames, nbytes: int, *deadline: float) -> memoryview:
        taken.append(nbytes)
        return take(frames, nbytes, *deadline)

    monkeypatch.setattr(SocketFrames, "_take", watched)
    connection = connect(offer(server), lane)
    connection.sendall(struct.pack("<4sB3xIQ", b"KVL1", Kind.HELLO, MAX_HEAD_NBYTES, 0))
    while not is_hung_up(connection):
        pass
    connection.close()
    assert taken == [FRAME.size]
