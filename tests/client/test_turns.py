"""Several workers: a call that one does not answer goes to the next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from kvclient.channel import channel_options
from kvclient.turns import Turns
from kvclient.usual import Usual
from kvstore.core.errors import ClosedError, ConfigError, DeadlineError, InvalidInputError, TierUnavailableError
from tests.client.fake_server import FakeServer
from tests.client.twins import Twin

DEAD = "127.0.0.1:1"


@pytest.fixture
def other() -> Iterator[FakeServer]:
    """Serve a second worker."""
    fake = FakeServer()
    fake.start()
    yield fake
    fake.stop()


class Both:
    """Two servers as one address, for `connect`."""

    def __init__(self, *addresses: str) -> None:
        self.address = ",".join(addresses)


def ask(client: Twin, server: FakeServer) -> str:
    """Ask a question and return the answer's text."""
    ref, _ = server.add_passage("a.txt", 0, "some words")
    answer = client.do(client.larder, "ask", [ref.id], "Why?")
    client.do(answer, "finish")
    return str(answer.text)


def test_turns_go_round_and_only_the_current_one_can_fail() -> None:
    """Two threads that saw one worker fail must not skip the other."""
    turns = Turns(["a", "b", "c"])
    turns.failed("a")
    turns.failed("a")
    assert turns.current == "b"
    turns.failed("b")
    turns.failed("c")
    assert turns.current == "a"


def test_a_circle_begins_with_the_one_to_ask() -> None:
    """So that whoever is asked too is another one."""
    assert Turns(["a", "b", "c"], 1).circle() == ("b", "c", "a")


@pytest.mark.parametrize("text", ["", ",", "a:1,", " ", "a", ":1", "a:b", "a:0", "a:99999", "http://a:1", "dns:a:1"])
def test_what_is_no_list_of_addresses_is_refused(text: str) -> None:
    """A comma too many is a typo; gRPC would take a port of 99999 for 34463."""
    with pytest.raises(ConfigError, match="commas"):
        Turns.among(text)


def test_clients_begin_at_different_workers() -> None:
    """All of them at the first would leave the others idle."""
    assert {Turns.among("a:1,b:1").current for _ in range(64)} == {"a:1", "b:1"}


def test_a_dead_worker_costs_no_request(connect: Callable[..., Twin], server: FakeServer) -> None:
    """Whichever of the two a client begins with."""
    for _ in range(4):
        client = connect(Both(DEAD, server.address))
        assert client.do(client.larder, "info").model == "tiny"
        assert client.larder.address == server.address


@pytest.mark.parametrize("error", [ClosedError("draining"), TierUnavailableError("gone")])
def test_a_draining_worker_hands_over(connect: Callable[..., Twin], server: FakeServer, other: FakeServer, error: Exception) -> None:
    """Unary calls and streams, and later calls go where the last one was answered."""
    client = connect(Both(server.address, other.address))
    first, second = (server, other) if client.larder.address == server.address else (other, server)
    for fake in (server, other):
        fake.add_passage("a.txt", 0, "some words")
    first.faults["Info"] = [error]
    assert client.do(client.larder, "info").model == "tiny"
    assert (first.calls["Info"], second.calls["Info"]) == (1, 1)
    second.faults["Ask"] = [error]
    assert ask(client, first)
    assert (second.calls["Ask"], first.calls["Ask"]) == (1, 1)


def test_an_answer_that_has_begun_is_not_given_twice(connect: Callable[..., Twin], server: FakeServer, other: FakeServer) -> None:
    """Its caller has seen the first token."""
    client = connect(Both(server.address, other.address))
    for fake in (server, other):
        fake.late_faults["Ask"] = TierUnavailableError("gone")
        fake.add_passage("a.txt", 0, "some words")
    with pytest.raises(TierUnavailableError):
        ask(client, server)
    assert server.calls["Ask"] + other.calls["Ask"] == 1


def test_what_can_never_work_is_not_asked_of_another(connect: Callable[..., Twin], server: FakeServer, other: FakeServer) -> None:
    """It would be refused there, too."""
    client = connect(Both(server.address, other.address))
    for fake in (server, other):
        fake.faults["Info"] = [InvalidInputError("no")]
    with pytest.raises(InvalidInputError):
        client.do(client.larder, "info")
    assert server.calls["Info"] + other.calls["Info"] == 1


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin with the first address, and find it late after a twentieth of a second."""
    monkeypatch.setattr(Usual, "late_s", 0.05)
    monkeypatch.setattr("kvclient.turns.random.randrange", lambda n: 0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("method", ["Ask", "Info"])
def test_a_worker_that_takes_calls_and_says_nothing_costs_no_deadline(
    connect: Callable[..., Twin], server: FakeServer, other: FakeServer, method: str
) -> None:
    """The next one is asked too, behind one that refuses connections, and is asked first from then on."""
    server.stalls.add(method)
    other.add_passage("a.txt", 0, "some words")
    client = connect(Both(server.address, DEAD, other.address))
    assert ask(client, server) if method == "Ask" else client.do(client.larder, "info").model
    assert (server.calls[method], other.calls[method]) == (1, 1)
    assert client.larder.address == other.address


@pytest.mark.usefixtures("impatient")
def test_a_slow_worker_that_answers_first_after_all_is_heard(
    connect: Callable[..., Twin], server: FakeServer, other: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of its work is lost."""
    server.stalls.add("Info")
    was_asked = threading.Event()

    def stall(*call: object) -> None:
        was_asked.set()
        server.is_released.set()
        other.is_released.wait(30)

    monkeypatch.setattr(other, "_begin", stall)
    client = connect(Both(server.address, other.address))
    assert client.do(client.larder, "info").model == "tiny"
    assert was_asked.is_set()
    assert client.larder.address == server.address


@pytest.mark.usefixtures("impatient")
def test_what_another_worker_says_of_a_question_is_the_answer(connect: Callable[..., Twin], server: FakeServer, other: FakeServer) -> None:
    """Its error is as good as that of the one that is late, and keeps its type."""
    server.stalls.add("Info")
    other.faults["Info"] = [InvalidInputError("no")]
    client = connect(Both(server.address, other.address))
    with pytest.raises(InvalidInputError):
        client.do(client.larder, "info")


@pytest.mark.usefixtures("impatient")
def test_an_ingest_is_never_computed_twice_at_once(connect: Callable[..., Twin], server: FakeServer, other: FakeServer) -> None:
    """It takes as long as the document is long; a connection that is dead ends by itself."""
    server.stalls.add("Ingest")
    client = connect(Both(server.address, other.address))
    with pytest.raises(DeadlineError):
        client.do(client.larder, "ingest", "a.txt", ["some words"], timeout_s=0.2)
    assert other.calls["Ingest"] == 0


def test_chunks_come_from_whichever_store_has_them(connect: Callable[..., Twin], server: FakeServer, other: FakeServer) -> None:
    """The worker names two stores, one of which may be away."""
    refs = [server.add_passage("a.txt", i, f"word {'x' * i}")[0] for i in range(3)]
    other.blobs[server.key_of(refs[1].id)] = server.blobs.pop(server.key_of(refs[1].id))
    server.store_address = f"{server.address},{other.address},{DEAD}"
    client = connect(server)
    found = client.do(client.larder, "chunks", [ref.id for ref in refs])
    assert [passage.blob is not None for passage in found] == [True, True, True]


def test_an_invalidation_reaches_all_stores_or_names_the_others(
    connect: Callable[..., Twin], server: FakeServer, other: FakeServer
) -> None:
    """Its caller must not believe that it is done."""
    server.store_address = f"{server.address},{other.address}"
    client = connect(server)
    assert client.do(client.larder, "invalidate", source="a.txt") == 1
    assert len(server.scopes) == len(other.scopes) == 1
    server.store_address += f",{DEAD}"
    with pytest.raises(TierUnavailableError, match=DEAD):
        client.do(client.larder, "invalidate", source="a.txt")
    assert len(server.scopes) == len(other.scopes) == 2


def test_a_connection_that_is_cut_off_is_found_dead_within_40_seconds() -> None:
    """gRPC waits for the answer to a ping for the longer of two timeouts, one of which is a minute by default: an ingest through a proxy
    that swallowed everything went to the next worker after 89 s, and after 39 s with both set.
    """
    options = dict(channel_options())
    assert options["grpc.keepalive_time_ms"] == 30_000
    assert options["grpc.keepalive_timeout_ms"] == options["grpc.http2.ping_timeout_ms"] == 10_000
