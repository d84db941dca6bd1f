"""A server that stalls, truncates, repeats or flips: the client gets a typed error within its deadline, never wrong bytes."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from kvclient import wire
from kvclient.remote import RemoteStore
from kvclient.retry import Retry
from kvproto.v1 import store_pb2 as pb
from kvproto.v1 import store_pb2_grpc as pb_grpc
from kvstore.core.api import Hit, Status
from kvstore.core.blob import iter_pieces, parse_header
from kvstore.core.errors import CorruptError, DeadlineError, FormatError, IdentityError, KVError, TierUnavailableError
from tests.server.chunks import key, make_blob

BLOB = make_blob(part_nbytes=400)
TOKEN = "t" * 20


class Liar(pb_grpc.StoreServiceServicer):
    """Answers a get with the messages it was given, then stalls if told so."""

    def __init__(self) -> None:
        self.messages: list[pb.GetResponse] = []
        self.failures = 0
        self.stalls = False
        self.end = threading.Event()

    def Get(self, request: pb.GetRequest, context: grpc.ServicerContext) -> Iterator[pb.GetResponse]:  # noqa: N802
        """Lie."""
        if self.failures:
            self.failures -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        yield from self.messages
        if self.stalls:
            self.end.wait(10)

    def Lookup(self, request: pb.LookupRequest, context: grpc.ServicerContext) -> pb.LookupResponse:  # noqa: N802
        """Answer for a key that nobody asked for."""
        return pb.LookupResponse(hits=[wire.hit_to_wire(Hit(key(make_blob(5)), Status.READY, "memory", 1))])


@pytest.fixture
def liar() -> Liar:
    """The servicer of a test."""
    return Liar()


@contextmanager
def lied_to(liar: Liar, attempts: int = 1, max_blob_bytes: int = 1 << 20) -> Iterator[RemoteStore]:
    """Connect to a server that lies."""
    server = grpc.server(ThreadPoolExecutor(4))
    pb_grpc.add_StoreServiceServicer_to_server(liar, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    retry = Retry(attempts, first_pause_s=0.01, seed=1)
    transport = RemoteStore(f"127.0.0.1:{port}", TOKEN, timeout_s=5, retry=retry, max_blob_bytes=max_blob_bytes)
    try:
        yield transport
    finally:
        liar.end.set()
        transport.close()
        server.stop(None).wait()


def announce(nbytes: int = len(BLOB)) -> pb.GetResponse:
    """Return the description of a chunk."""
    return pb.GetResponse(hit=wire.hit_to_wire(Hit(key(BLOB), Status.READY, "memory", nbytes)))


def pieces(blob: bytes | bytearray = BLOB, nbytes: int = 300) -> list[pb.GetResponse]:
    """Return a chunk's pieces, small ones."""
    return [pb.GetResponse(piece=bytes(piece)) for piece in iter_pieces(blob, nbytes)]


def read_all(transport: RemoteStore, timeout_s: float = 5.0) -> list[bytes] | None:
    """Read a whole chunk."""
    reader = transport.get(key(BLOB), timeout_s)
    if reader is None:
        return None
    try:
        return [bytes(reader.part(index)) for index in range(len(reader.manifest.parts))]
    finally:
        reader.close()


def flipped(at: int) -> bytearray:
    """Return the chunk with one bit changed."""
    blob = bytearray(BLOB)
    blob[at] ^= 1 << (at % 8)
    return blob


LIES: dict[str, tuple[list[pb.GetResponse], tuple[type[KVError], ...]]] = {
    "nothing at all": ([], (CorruptError,)),
    "bytes without a description": (pieces(), (FormatError,)),
    "an empty message": ([pb.GetResponse()], (FormatError,)),
    "a chunk too large for the client": ([announce(2 << 20)], (FormatError,)),
    "the largest length there is": ([announce(2**64 - 1)], (FormatError,)),
    "a chunk of no bytes": ([announce(0)], (FormatError,)),
    "no pieces": ([announce()], (CorruptError,)),
    "a missing piece at the end": ([announce(), *pieces()[:-1]], (CorruptError,)),
    "a missing piece in the middle": ([announce(), *pieces()[:2], *pieces()[3:]], (CorruptError, FormatError)),
    "a repeated piece": ([announce(), *pieces()[:2], pieces()[1], *pieces()[2:]], (CorruptError, FormatError)),
    "swapped pieces": ([announce(), pieces()[1], pieces()[0], *pieces()[2:]], (CorruptError, FormatError)),
    "an empty piece": ([announce(), pb.GetResponse(piece=b""), *pieces()], (CorruptError,)),
    "a second description": ([announce(), announce(), *pieces()], (CorruptError,)),
    "more bytes than announced": ([announce(len(BLOB) - 1), *pieces()], (CorruptError,)),
    "fewer bytes announced than the header says": ([announce(len(BLOB) + 64), *pieces(BLOB + bytes(64))], (CorruptError,)),
    "another chunk": ([announce(len(make_blob(1, part_nbytes=400))), *pieces(make_blob(1, part_nbytes=400))], (IdentityError,)),
    "noise": ([announce(1000), pb.GetResponse(piece=random.Random(0).randbytes(1000))], (FormatError,)),
}


@pytest.mark.parametrize(("messages", "errors"), LIES.values(), ids=LIES.keys())
def test_a_lie_is_a_typed_error(liar: Liar, messages: list[pb.GetResponse], errors: tuple[type[KVError], ...]) -> None:
    """Never wrong bytes."""
    liar.messages = messages
    with lied_to(liar) as transport, pytest.raises(errors):
        read_all(transport)


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
    liar.messages, liar.stalls = [announce(), pb.GetResponse(piece=bytes(BLOB[: spec.offset + spec.nbytes]))], True
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
        with pytest.raises(TierUnavailableError):
            reader.part(2)
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
