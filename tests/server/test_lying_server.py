"""A server that stalls, truncates, repeats or flips: the client gets a typed error within its deadline, never wrong bytes."""

from __future__ import annotations

import random
import threading
import time

import pytest

from kvclient.lanes.frames import Found, pack_found, sealed
from kvclient.remote import RemoteStore
from kvclient.retry import Retry
from kvstore.core.api import Status
from kvstore.core.blob import parse_header
from kvstore.core.errors import ClosedError, CorruptError, DeadlineError, FormatError, IdentityError, KVError, TierUnavailableError
from tests.server.chunks import key, make_blob
from tests.server.liars import BLOB, TOKEN, Liar, fetched, flipped, lied_to, read_all, ready
from tests.server.raw import pieces_of


@pytest.fixture
def liar() -> Liar:
    """The servicer of a test."""
    return Liar()


def announce(nbytes: int = len(BLOB)) -> bytes:
    """Return the description of a chunk."""
    return pack_found([ready(nbytes)])


def pieces(blob: bytes | bytearray = BLOB, nbytes: int = 300) -> list[bytes]:
    """Return a chunk's pieces, small ones."""
    return pieces_of(blob, nbytes)


OTHER = make_blob(1, part_nbytes=400)
UNKNOWN_STATUS = sealed(b"\x09" + announce()[1:-4])
LIES: dict[str, tuple[list[bytes], tuple[type[KVError], ...]]] = {
    "nothing at all": ([], (CorruptError,)),
    "bytes without a description": (pieces(), (CorruptError,)),
    "an empty message": ([b""], (FormatError,)),
    "a description of two chunks": ([sealed(announce()[:-4] * 2), *pieces()], (FormatError,)),
    "a status that is none": ([UNKNOWN_STATUS, *pieces()], (FormatError,)),
    "a chunk too large for the client": ([announce(2 << 20)], (FormatError,)),
    "the largest length there is": ([announce(2**64 - 1)], (FormatError,)),
    "a chunk of no bytes": ([announce(0)], (FormatError,)),
    "no pieces": ([announce()], (CorruptError,)),
    "a missing piece at the end": ([announce(), *pieces()[:-1]], (CorruptError,)),
    "a missing piece in the middle": ([announce(), *pieces()[:2], *pieces()[3:]], (CorruptError, FormatError)),
    "a repeated piece": ([announce(), *pieces()[:2], pieces()[1], *pieces()[2:]], (CorruptError, FormatError)),
    "swapped pieces": ([announce(), pieces()[1], pieces()[0], *pieces()[2:]], (CorruptError, FormatError)),
    "an empty piece": ([announce(), b"", *pieces()], (CorruptError,)),
    "a flipped bit of the description": ([bytes([announce()[0] ^ 1]) + announce()[1:], *pieces()], (CorruptError,)),
    "a second description": ([announce(), announce(), *pieces()], (CorruptError, FormatError)),
    "more bytes than announced": ([announce(len(BLOB) - 1), *pieces()], (CorruptError,)),
    "fewer bytes announced than the header says": ([announce(len(BLOB) + 64), *pieces(BLOB + bytes(64))], (CorruptError,)),
    "another chunk": ([announce(len(OTHER)), *pieces(OTHER)], (IdentityError,)),
    "noise": ([announce(1000), random.Random(0).randbytes(1000)], (FormatError,)),
}
FETCHED_LIES: dict[str, tuple[bytes, tuple[type[KVError], ...]]] = {
    "nothing": (b"", (FormatError,)),
    "four bytes": (bytes(4), (FormatError,)),
    "a head longer than the message": ((2**32 - 1).to_bytes(4, "little") + b"\1" + announce(), (FormatError,)),
    "no description": (fetched(b"", BLOB), (FormatError,)),
    "half a description": (fetched(sealed(announce()[:-5]), BLOB), (FormatError,)),
    "a status that is none": (fetched(UNKNOWN_STATUS, BLOB), (FormatError,)),
    "a chunk too large for the client": (fetched(announce(2 << 20), BLOB), (FormatError,)),
    "no bytes": (fetched(announce(), b""), (CorruptError,)),
    "too few bytes": (fetched(announce(), BLOB[:-1]), (CorruptError,)),
    "fewer bytes than the header says": (fetched(announce(len(BLOB) - 1), BLOB[:-1]), (CorruptError,)),
    "another chunk": (fetched(announce(len(OTHER)), OTHER), (IdentityError,)),
    "noise": (fetched(announce(1000), random.Random(0).randbytes(1000)), (FormatError,)),
    "noise all over": (random.Random(1).randbytes(500), (FormatError,)),
}


@pytest.mark.parametrize(("messages", "errors"), LIES.values(), ids=LIES.keys())
def test_a_lie_is_a_typed_error(liar: Liar, messages: list[bytes], errors: tuple[type[KVError], ...]) -> None:
    """Never wrong bytes."""
    liar.messages = messages
    with lied_to(liar) as transport, pytest.raises(errors):
        read_all(transport)


@pytest.mark.parametrize(("answer", "errors"), FETCHED_LIES.values(), ids=FETCHED_LIES.keys())
def test_a_lie_in_one_message_is_a_typed_error(liar: Liar, answer: bytes, errors: tuple[type[KVError], ...]) -> None:
    """As small chunks come."""
    liar.fetched = answer
    with lied_to(liar) as transport, pytest.raises(errors):
        read_all(transport)


def test_a_miss_with_bytes_is_a_miss(liar: Liar) -> None:
    """Nobody reads them."""
    liar.fetched = fetched(pack_found([Found(Status.ABSENT, "evicted", 10)]), bytes(10))
    with lied_to(liar) as transport:
        assert read_all(transport) is None


def test_a_flipped_bit_anywhere_never_reaches_the_reader(liar: Liar) -> None:
    """Header, manifest, padding and parts."""
    with lied_to(liar) as transport:
        for at in range(0, len(BLOB), 5):
            liar.messages = [announce(), *pieces(flipped(at))]
            with pytest.raises((CorruptError, FormatError)):
                read_all(transport)


@pytest.mark.parametrize("sent", [0, 1, 3])
def test_a_stall_ends_with_the_deadline(liar: Liar, sent: int) -> None:
    """Before the header, within it, or among the parts."""
    liar.messages, liar.stalls = [announce(), *pieces()][:sent], True
    with lied_to(liar) as transport:
        start_s = time.monotonic()
        with pytest.raises(DeadlineError):
            read_all(transport, timeout_s=0.2)
        assert time.monotonic() - start_s < 2


def test_a_part_is_there_before_later_ones_have_come(liar: Liar) -> None:
    """A model's first layers can start."""
    spec = parse_header(BLOB).manifest.parts[0]
    liar.messages, liar.stalls = [announce(), bytes(BLOB[: spec.offset + spec.nbytes])], True
    with lied_to(liar) as transport:
        reader = transport.get(key(BLOB), 0.3)
        assert reader is not None
        assert bytes(reader.part(0)) == bytes(BLOB[spec.offset : spec.offset + spec.nbytes])
        with pytest.raises(DeadlineError):
            reader.part(1)
        reader.close()


def test_closing_a_reader_wakes_whoever_waits_for_a_part(liar: Liar) -> None:
    """A racing plan drops what comes too late."""
    liar.messages, liar.stalls = [announce(), *pieces()[:-1]], True
    with lied_to(liar) as transport:
        reader = transport.get(key(BLOB))
        assert reader is not None
        timer = threading.Timer(0.05, reader.close)
        timer.start()
        start_s = time.monotonic()
        with pytest.raises(ClosedError):
            reader.part(2)
        assert time.monotonic() - start_s < 2
        timer.join()


def test_a_get_is_tried_again_until_the_server_answers(liar: Liar) -> None:
    """A restart is not a miss."""
    liar.messages, liar.failures = [announce(), *pieces()], 2
    with lied_to(liar, attempts=3) as transport:
        assert read_all(transport) is not None


def test_a_lookup_that_answers_for_other_keys_is_an_error(liar: Liar) -> None:
    """A hit belongs to its key."""
    with lied_to(liar) as transport, pytest.raises(KVError, match="not theirs"):
        transport.lookup([key(BLOB)])


def test_a_server_that_is_not_there_is_unavailable() -> None:
    """At once, not after the deadline."""
    transport = RemoteStore("127.0.0.1:9", TOKEN, timeout_s=5, retry=Retry(attempts=1))
    start_s = time.monotonic()
    with pytest.raises(TierUnavailableError):
        transport.lookup([key(BLOB)])
    transport.close()
    assert time.monotonic() - start_s < 3


def test_a_closed_transport_says_so(liar: Liar) -> None:
    """As one of our errors."""
    with lied_to(liar) as transport:
        transport.close()
        with pytest.raises(KVError, match="closed"):
            transport.get(key(BLOB))
