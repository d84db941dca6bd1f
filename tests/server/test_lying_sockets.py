"""A server whose socket lane lies: the client gets a typed error within its deadline, never wrong bytes, and leaves nothing open."""

from __future__ import annotations

import random
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kvclient.lanes.choice import LaneName
from kvclient.lanes.frames import MAX_HEAD_NBYTES, Found, Kind, Place, pack_count, pack_error, pack_receipt, sealed
from kvclient.remote import RemoteStore
from kvstore.core.api import PutNote, PutReceipt, Status
from kvstore.core.errors import (
    AuthError,
    CapacityError,
    CorruptError,
    DeadlineError,
    FormatError,
    IdentityError,
    KVError,
    TierUnavailableError,
)
from tests.server.chunks import key, make_blob
from tests.server.leaks import leaving_nothing
from tests.server.liars import BLOB, WELCOMES, SocketLiar, flipped, framed, lying_socket, read_all, read_next, ready, told

Lying = tuple[SocketLiar, RemoteStore]
Errors = tuple[type[KVError], ...]

GENERATION = 7
OFFSET = 4096  # of the chunk in the shared memory
OTHER = make_blob(1, part_nbytes=400)
LARGE = make_blob(2, part_nbytes=100_000)


def arena(blob: bytes | bytearray = BLOB) -> bytes:
    """Return shared memory with one generation, in word 1, and one chunk."""
    return struct.pack("<QQ", 0, GENERATION).ljust(OFFSET, b"\0") + blob


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a server says, no descriptor of it stays."""
    with leaving_nothing():
        yield
        request.node.funcargs.clear()


@pytest.fixture(params=["shm", "tcp"])
def lane(request: pytest.FixtureRequest) -> LaneName:
    """The lane that lies."""
    return "shm" if request.param == "shm" else "tcp"


@pytest.fixture
def lying(lane: LaneName, tmp_path: Path) -> Iterator[Lying]:
    """A socket that lies, and a client of it."""
    with lying_socket(lane, tmp_path, arena()) as pair:
        yield pair


def frame(lane: str, **changed: object) -> bytes:
    """Return the frame of an honest answer, changed."""
    fields: dict[str, object] = {"magic": b"KVL1", "kind": frame_kind(lane), "head": 56 if lane == "shm" else 28, "body": len(BLOB)}
    fields |= changed
    return struct.pack("<4sB3xIQ", *fields.values())


LIES: dict[str, tuple[Callable[[str], bytes], Errors]] = {
    "nothing at all": (lambda lane: b"", (TierUnavailableError,)),
    "half a frame": (lambda lane: frame(lane)[:10], (TierUnavailableError,)),
    "a frame alone": (frame, (TierUnavailableError,)),
    "another magic": (lambda lane: frame(lane, magic=b"KVL2") + bytes(9000), (FormatError,)),
    "an unknown kind": (lambda lane: frame(lane, kind=99) + bytes(9000), (FormatError,)),
    "a kind of clients": (lambda lane: framed(Kind.GET, told(lane, ready())[20:], BLOB), (FormatError,)),
    "a welcome": (lambda lane: WELCOMES[lane] + told(lane, ready(), BLOB), (FormatError,)),
    "a receipt": (lambda lane: framed(Kind.STORED, bytes(24)), (FormatError,)),
    "a head that is too long": (lambda lane: frame(lane, head=MAX_HEAD_NBYTES + 1), (FormatError,)),
    "the longest head there is": (lambda lane: frame(lane, head=2**32 - 1), (FormatError,)),
    "a head of two chunks": (lambda lane: framed(frame_kind(lane), sealed(2 * told(lane, ready())[20:-4]), BLOB), (FormatError,)),
    "a flipped bit of the head": (lambda lane: framed(frame_kind(lane), b"\x03" + told(lane, ready())[21:], BLOB), (CorruptError,)),
    "no head": (lambda lane: framed(frame_kind(lane), b"", BLOB), (FormatError,)),
    "a status that is none": (lambda lane: framed(frame_kind(lane), sealed(b"\x07" + told(lane, ready())[21:-4]), BLOB), (FormatError,)),
    "a longer body than its chunk": (lambda lane: told(lane, ready(), BLOB + b"x"), (FormatError,)),
    "a shorter body than its chunk": (lambda lane: told(lane, ready(), BLOB[:-1]), (FormatError,)),
    "the longest body there is": (lambda lane: told(lane, ready(), BLOB, 2**64 - 1), (FormatError,)),
    "a chunk without a body": (lambda lane: told(lane, ready()), (FormatError,)),
    "a body with a miss": (lambda lane: told(lane, Found(Status.ABSENT, "evicted", 0), BLOB), (FormatError,)),
    "less body than announced": (lambda lane: told(lane, ready(), BLOB[:-1], len(BLOB)), (TierUnavailableError,)),
    "half of a body": (lambda lane: told(lane, ready(), BLOB[: len(BLOB) // 2], len(BLOB)), (TierUnavailableError,)),
    "a chunk too large for the client": (lambda lane: told(lane, ready(2 << 20), bytes(64), 2 << 20), (FormatError,)),
    "a length beyond its chunk": (lambda lane: told(lane, ready(len(BLOB) + 1), BLOB + b"x"), (CorruptError,)),
    "another chunk": (lambda lane: told(lane, ready(len(OTHER)), OTHER), (IdentityError,)),
    "noise for a chunk": (lambda lane: told(lane, ready(500), random.Random(0).randbytes(500)), (FormatError,)),
    "noise": (lambda lane: random.Random(1).randbytes(9000), (FormatError,)),
    "an error of ours": (lambda lane: framed(Kind.ERROR, pack_error(CapacityError("full"))), (CapacityError,)),
    "an error that is none": (lambda lane: framed(Kind.ERROR, b"SystemExit\0boom"), (KVError,)),
    "an error of noise": (lambda lane: framed(Kind.ERROR, random.Random(2).randbytes(300)), (KVError,)),
    "an empty error": (lambda lane: framed(Kind.ERROR, b""), (KVError,)),
    "a miss with a body": (lambda lane: framed(Kind.ERROR, pack_error(CapacityError("full")), b"x" * 50), (CapacityError,)),
}


def frame_kind(lane: str) -> Kind:
    """Return the kind of an answer to a request for chunks."""
    return Kind.PLACED if lane == "shm" else Kind.FOUND


@pytest.mark.parametrize(("lie", "errors"), LIES.values(), ids=LIES.keys())
def test_a_lie_is_a_typed_error(lying: Lying, lane: LaneName, lie: Callable[[str], bytes], errors: Errors) -> None:
    """And the next request, by whatever connection, gets the next answer."""
    liar, remote = lying
    liar.answers = [lie(lane)]
    with pytest.raises(errors):
        read_all(remote)
    liar.answers = [told(lane, ready(), BLOB)]
    assert read_next(remote) is not None


REFUSALS: dict[str, tuple[bytes, Errors]] = {
    "nothing": (b"", (TierUnavailableError,)),
    "noise": (random.Random(3).randbytes(64), (TierUnavailableError,)),
    "another protocol": (b"HTTP/1.1 400 Bad Request\r\n\r\n", (TierUnavailableError,)),
    "another kind": (framed(Kind.FOUND, bytes(24)), (TierUnavailableError,)),
    "a head that is no number": (framed(Kind.WELCOME, bytes(7)), (TierUnavailableError,)),
    "a refusal": (framed(Kind.ERROR, pack_error(AuthError("who are you?"))), (TierUnavailableError,)),
}


@pytest.mark.parametrize(("welcome", "errors"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_server_that_does_not_welcome_is_unavailable(lying: Lying, welcome: bytes, errors: Errors) -> None:
    """Another lane may work."""
    liar, remote = lying
    liar.welcome, liar.descriptor = welcome, -1
    with pytest.raises(errors):
        read_all(remote)


def test_a_flipped_bit_anywhere_never_reaches_the_reader(lying: Lying, lane: LaneName) -> None:
    """Header, manifest, padding and parts."""
    liar, remote = lying
    for at in range(0, len(BLOB), 23):
        liar.answers = [told(lane, ready(), flipped(at))]
        with pytest.raises((CorruptError, FormatError)):
            read_next(remote)


@pytest.mark.parametrize("nbytes", [0, 10, 30, 80, 1000])
def test_a_stall_ends_with_the_deadline(lying: Lying, lane: LaneName, nbytes: int) -> None:
    """Before the frame, within it, within the head, before the body or among the parts."""
    liar, remote = lying
    liar.answers, liar.stalls = [told(lane, ready(), BLOB)[:nbytes]], True
    start_s = time.monotonic()
    with pytest.raises(DeadlineError):
        read_all(remote, timeout_s=0.2)
    assert time.monotonic() - start_s < 2


def test_closing_a_reader_wakes_whoever_waits_for_a_part(lying: Lying, lane: LaneName) -> None:
    """A racing plan drops what comes too late."""
    liar, remote = lying
    liar.answers, liar.stalls = [told(lane, ready(), BLOB)[:-10]], True
    reader = remote.get(key(BLOB))
    assert reader is not None
    timer = threading.Timer(0.05, reader.close)
    timer.start()
    start_s = time.monotonic()
    with pytest.raises(KVError, match="closed"):
        reader.part(2)
    assert time.monotonic() - start_s < 2
    timer.join()


RECEIPTS: dict[str, tuple[bytes, Errors]] = {
    "nothing": (b"", (TierUnavailableError,)),
    "a short receipt": (framed(Kind.STORED, sealed(bytes(23))), (FormatError,)),
    "a flipped bit of a receipt": (framed(Kind.STORED, sealed(bytes(24))[:-1] + b"x"), (CorruptError,)),
    "a long receipt": (framed(Kind.STORED, sealed(bytes(25))), (FormatError,)),
    "another kind": (framed(Kind.FOUND, bytes(24)), (FormatError,)),
    "noise": (random.Random(4).randbytes(60), (FormatError,)),
    "a refusal": (framed(Kind.ERROR, pack_error(CapacityError("full"))), (CapacityError,)),
}


@pytest.mark.parametrize(("receipt", "errors"), RECEIPTS.values(), ids=RECEIPTS.keys())
def test_a_lie_about_a_put_is_a_typed_error(lying: Lying, receipt: bytes, errors: Errors) -> None:
    """The writer does not believe that the chunk is stored."""
    liar, remote = lying
    liar.answers = [receipt]
    with pytest.raises(errors):
        remote.put(BLOB, PutNote())


STORED = framed(Kind.STORED, pack_receipt(PutReceipt(key(LARGE), True, "memory", len(LARGE), False)))
STAGES: dict[str, tuple[list[bytes], Errors]] = {
    "no ring": ([framed(Kind.STORED, b"")], (FormatError,)),
    "a ring of no bytes": ([framed(Kind.STAGED, pack_count(0))], (TierUnavailableError,)),
    "a ring of one byte": ([framed(Kind.STAGED, pack_count(1))], (TierUnavailableError,)),
    "a ring larger than its file": ([framed(Kind.STAGED, pack_count(1 << 20))], (TierUnavailableError,)),
    "the largest ring there is": ([framed(Kind.STAGED, pack_count(2**64 - 1))], (TierUnavailableError,)),
    "a receipt before the bytes": ([framed(Kind.STAGED, pack_count(4096)), STORED], (FormatError,)),
    "an ack that is no number": ([framed(Kind.STAGED, pack_count(4096)), framed(Kind.LANDED, b"")], (FormatError,)),
    "a refusal": ([framed(Kind.STAGED, pack_count(4096)), framed(Kind.ERROR, pack_error(CapacityError("full")))], (CapacityError,)),
}


@pytest.mark.parametrize(("answers", "errors"), STAGES.values(), ids=STAGES.keys())
def test_a_lie_about_a_staging_ring_is_a_typed_error(tmp_path: Path, answers: list[bytes], errors: Errors) -> None:
    """Within the deadline, and nothing is written beyond what was mapped."""
    with lying_socket("shm", tmp_path, arena()) as (liar, remote):
        liar.answers, liar.stalls = answers, True
        with pytest.raises(errors):
            remote.put(LARGE, PutNote())


HONEST = Place(OFFSET, GENERATION, 1, 1)
PLACES: dict[str, tuple[Place, int, Errors]] = {
    "a chunk that ends behind the arena": (Place(OFFSET + 1, GENERATION, 1, 1), len(BLOB), (FormatError,)),
    "a chunk behind the arena": (Place(1 << 40, GENERATION, 1, 1), len(BLOB), (FormatError,)),
    "the largest offset there is": (Place(2**64 - 2, GENERATION, 1, 1), len(BLOB), (FormatError,)),
    "a word behind the arena": (Place(OFFSET, GENERATION, 1, 2**32 - 1), len(BLOB), (FormatError,)),
    "another generation": (Place(OFFSET, GENERATION + 1, 1, 1), len(BLOB), (TierUnavailableError,)),
    "a word of no generation": (Place(OFFSET, GENERATION, 1, 0), len(BLOB), (TierUnavailableError,)),
    "another place": (Place(64, GENERATION, 1, 1), len(BLOB), (FormatError,)),
    "a chunk too large for the client": (HONEST, 2 << 20, (FormatError,)),
    "a chunk of no bytes": (HONEST, 0, (FormatError,)),
    "a chunk without its last byte": (HONEST, len(BLOB) - 1, (CorruptError,)),
}


@pytest.mark.parametrize("ask", [RemoteStore.get, RemoteStore.view], ids=["get", "view"])
@pytest.mark.parametrize(("place", "nbytes", "errors"), PLACES.values(), ids=PLACES.keys())
def test_a_lie_about_a_place_is_a_typed_error(
    tmp_path: Path, place: Place, nbytes: int, errors: Errors, ask: Callable[..., object]
) -> None:
    """What lies elsewhere is never read as the chunk."""
    with lying_socket("shm", tmp_path, arena()) as (liar, remote):
        liar.answers = [told("shm", ready(nbytes, place))]
        with pytest.raises(errors):
            read_by(ask, remote)
        liar.answers = [told("shm", ready(place=HONEST))]
        with suppress(TierUnavailableError):  # of the connection that the liar hung up
            assert read_by(ask, remote)
            return
        assert read_by(ask, remote)


def read_by(ask: Callable[..., object], remote: RemoteStore) -> list[bytes]:
    """Read a chunk by `get` or `view`."""
    reader = ask(remote, key(BLOB))
    parts = [bytes(reader.part(index)) for index in range(3)]  # type: ignore[attr-defined]
    reader.close()  # type: ignore[attr-defined]
    return parts


def test_a_flipped_bit_of_shared_memory_never_reaches_the_reader(tmp_path: Path) -> None:
    """It is verified as any other."""
    for at in (0, 70, 600, len(BLOB) - 1):
        with lying_socket("shm", tmp_path / str(at), arena(flipped(at))) as (liar, remote):
            liar.answers = [told("shm", ready(place=HONEST))]
            with pytest.raises((CorruptError, FormatError)):
                read_all(remote)


@pytest.mark.parametrize("memory", [b"", b"1234567"], ids=["empty", "seven bytes"])
def test_shared_memory_that_is_none_is_a_typed_error(tmp_path: Path, memory: bytes) -> None:
    """Too short for a single generation."""
    with lying_socket("shm", tmp_path, memory) as (liar, remote):
        liar.answers = [told("shm", ready(place=HONEST))]
        with pytest.raises((TierUnavailableError, FormatError)):
            read_all(remote)


def test_a_server_that_hands_nothing_over_is_unavailable(tmp_path: Path) -> None:
    """A byte without an open file beside it."""
    with lying_socket("shm", tmp_path) as (liar, remote):
        liar.welcome, liar.descriptor = WELCOMES["shm"] + b"\0", -1
        with pytest.raises(TierUnavailableError):
            read_all(remote)
