"""The client side of RESP2: values land in place, whatever the packets; what is not RESP2 is a typed error within the deadline."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from kvstore.core.errors import CapacityError, CorruptError, DeadlineError, KVError, TierUnavailableError
from kvstore.store.redis.resp import Connection, Refusal, Word, encode
from kvstore.store.redis.socket import PlainChannel

TIMEOUT_S = 0.1
SLACK_S = 1.0  # for a busy machine
Pair = tuple[Connection, socket.socket]


class Packets:
    """A channel that receives given bytes in packets of random sizes, and keeps what is sent."""

    def __init__(self, data: bytes, seed: int) -> None:
        self._data = memoryview(data)
        self._rng = random.Random(seed)
        self.sent = b""

    def receive(self, room: memoryview, until: float) -> int:
        count = min(room.nbytes, self._data.nbytes, self._rng.choice([1, 2, 7, 100, 100_000]))
        room[:count] = self._data[:count]
        self._data = self._data[count:]
        assert count
        return count

    def receive_all(self, room: memoryview, until: float) -> None:
        while room.nbytes:
            room = room[self.receive(room, until) :]

    def send(self, parts: Sequence[memoryview], until: float) -> None:
        self.sent += b"".join(parts)

    def is_stale(self) -> bool:
        return False

    def close(self) -> None:
        return


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A connection and the server's end of it."""
    ours, theirs = socket.socketpair()
    connection = Connection(PlainChannel(ours), "here", TIMEOUT_S)
    yield connection, theirs
    connection.close()
    theirs.close()


def answered(pair: Pair, reply: bytes) -> Connection:
    """Return the connection behind one command, with this reply on its way."""
    connection, theirs = pair
    connection.ask(b"GET", b"k")
    theirs.sendall(reply)
    return connection


def test_a_command_is_its_words_with_their_lengths() -> None:
    """A word may lie in several buffers."""
    words: list[Word] = [b"SET", b"k", [memoryview(b"ab"), memoryview(b""), memoryview(b"c")]]
    assert b"".join(encode(words)) == b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$3\r\nabc\r\n"


def test_long_buffers_are_sent_without_a_copy() -> None:
    """A piece of 1 MiB is not worth a second one."""
    piece = bytearray(1 << 20)
    assert [part.nbytes for part in encode([b"SET", b"k", [memoryview(piece)]]) if part.obj is piece] == [1 << 20]


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (b"+OK\r\n", b"OK"), (b":-7\r\n", -7), (b"$-1\r\n", None), (b"$0\r\n\r\n", b""), (b"$4\r\na\r\nb\r\n", b"a\r\nb"),
        (b"-OOM no\r\n", Refusal("OOM no")),
    ],
)  # fmt: skip
def test_every_kind_of_reply_is_understood(pair: Pair, reply: bytes, answer: object) -> None:
    """A value may hold what ends a line."""
    connection = answered(pair, reply)
    assert connection.reply() == answer
    assert connection.is_clean


@pytest.mark.parametrize("seed", range(20))
def test_values_land_whole_and_in_order_however_the_bytes_arrive(seed: int) -> None:
    """Packets end anywhere: within a line, a value, or the two bytes behind it."""
    rng = random.Random(seed)
    values = [rng.randbytes(rng.choice([0, 1, 5, 16 << 10, 40_000])) for _ in range(6)]
    channel = Packets(b"".join(b"$%d\r\n%s\r\n:3\r\n" % (len(value), value) for value in values), seed)
    connection = Connection(channel, "here", 5.0)
    for value in values:
        connection.ask(b"GET", b"k")
        connection.ask(b"UNLINK", b"k")
        room = bytearray(len(value))
        assert connection.land(memoryview(room)) is bool(value)
        assert room == value
        assert connection.reply() == 3
    assert connection.is_clean
    assert channel.sent.count(b"GET") == len(values)


@pytest.mark.parametrize(("reply", "outcome"), [(b"$-1\r\n", False), (b"-MOVED 1 h:2\r\n", Refusal("MOVED 1 h:2"))])
def test_a_value_that_is_not_there_leaves_the_connection_clean(pair: Pair, reply: bytes, outcome: object) -> None:
    """The next command may follow."""
    connection = answered(pair, reply)
    assert connection.land(memoryview(bytearray(4))) == outcome
    assert connection.is_clean


@pytest.mark.parametrize("length", [b"3", b"5", b"536870912", b"999999999999999999"])
def test_a_value_of_another_length_is_corrupt_and_takes_no_memory(pair: Pair, length: bytes) -> None:
    """The room is all that is ever written to."""
    connection = answered(pair, b"$" + length + b"\r\nabcdefgh")
    with pytest.raises(CorruptError, match="instead of 4 B"):
        connection.land(memoryview(bytearray(4)))
    assert not connection.is_clean


@pytest.mark.parametrize("reply", [b"$-1\r\n", b"$0\r\n\r\n"], ids=["nothing", "an empty value"])
def test_a_value_that_is_not_there_leaves_the_room_and_the_connection_alone(pair: Pair, reply: bytes) -> None:
    """A range of a key that does not exist is empty."""
    connection, room = answered(pair, reply), bytearray(b"abcd")
    assert connection.land(memoryview(room)) is False
    assert (room, connection.is_clean) == (b"abcd", True)


HOSTILE = {
    "no kind": b"HTTP/1.1 400\r\n", "an array": b"*1\r\n:1\r\n", "no number": b"$4x\r\nabcd\r\n", "a spaced number": b"$ 4\r\nabcd\r\n",
    "an underscored number": b"$1_0\r\n", "an endless number": b"$" + b"9" * 5000 + b"\r\n", "a negative length": b"$-2\r\n",
    "a longer value": b"$4\r\nabcdefgh\r\n", "an endless line": b"+" + b"a" * 20_000, "an empty line": b"\r\n", "zeros": bytes(20_000),
}  # fmt: skip


@pytest.mark.parametrize("reply", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("call", ["reply", "land"])
def test_what_is_not_resp_is_an_error_and_the_end_of_the_connection(pair: Pair, reply: bytes, call: str) -> None:
    """Nothing behind it can be told apart from values any more."""
    connection = answered(pair, reply)
    with pytest.raises((TierUnavailableError, CorruptError)):
        assert connection.reply(4) is None if call == "reply" else connection.land(memoryview(bytearray(4)))
    assert not connection.is_clean


def test_a_reply_longer_than_wanted_takes_no_memory(pair: Pair) -> None:
    """A server may announce half a gigabyte where an index should be."""
    connection = answered(pair, b"$536870912\r\n")
    with pytest.raises(TierUnavailableError, match="536870912 B was announced where 41 B"):
        connection.reply(41)


@pytest.mark.parametrize("reply", [b"", b"$4", b"$4\r\n", b"$4\r\nab", b"$4\r\nabcd", b"$4\r\nabcd\r"])
@pytest.mark.parametrize(("ending", "error"), [(True, TierUnavailableError), (False, DeadlineError)], ids=["closed", "stalled"])
def test_a_reply_that_ends_early_is_an_error_within_the_deadline(pair: Pair, reply: bytes, ending: bool, error: type[KVError]) -> None:
    """At every place where it can end."""
    connection = answered(pair, reply)
    connection.flush()
    if ending:
        pair[1].shutdown(socket.SHUT_WR)
    start = time.monotonic()
    with pytest.raises(error):
        connection.land(memoryview(bytearray(4)))
    assert time.monotonic() - start < TIMEOUT_S + SLACK_S
    assert not connection.is_clean


def test_a_value_that_trickles_ends_at_the_deadline(pair: Pair) -> None:
    """Each byte is in time; the value is not."""
    connection, theirs = pair
    done = threading.Event()

    def trickle() -> None:
        theirs.sendall(b"$1000\r\n")
        while not done.wait(TIMEOUT_S / 10):
            theirs.send(b"x")

    thread = threading.Thread(target=trickle)
    connection.ask(b"GET", b"k")
    thread.start()
    start = time.monotonic()
    try:
        with pytest.raises(DeadlineError):
            connection.land(memoryview(bytearray(1000)))
        assert TIMEOUT_S / 2 < time.monotonic() - start < TIMEOUT_S + SLACK_S
    finally:
        done.set()
        thread.join()


def test_a_server_that_does_not_read_ends_at_the_deadline(pair: Pair) -> None:
    """Its socket fills, and ours behind it."""
    start = time.monotonic()
    with pytest.raises(DeadlineError):
        pair[0].ask(b"SET", b"k", [memoryview(bytearray(64 << 20))])
    assert time.monotonic() - start < TIMEOUT_S + SLACK_S


def test_failures_of_the_server_are_told_and_refusals_are_not() -> None:
    """A breaker counts the first and not the second."""
    ours, theirs = socket.socketpair()
    failed: list[int] = []
    connection = Connection(PlainChannel(ours), "here", TIMEOUT_S, lambda: failed.append(1))
    theirs.sendall(b"-ERR no\r\n")
    connection.ask(b"GET", b"k")
    connection.reply()
    assert failed == []
    theirs.close()
    with pytest.raises(TierUnavailableError):
        connection.ask(b"GET", b"k") or connection.reply()  # type: ignore[func-returns-value]
    connection.close()
    assert failed == [1]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("OOM full", CapacityError),
        ("WRONGTYPE list", CorruptError),
        ("NOAUTH who", TierUnavailableError),
        ("LOADING wait", TierUnavailableError),
    ],
)
def test_a_refusal_becomes_the_error_that_says_what_to_do(text: str, error: type[KVError]) -> None:
    """The server's own words are kept."""
    found = Refusal(text).error("here")
    assert type(found) is error
    assert text in str(found)
