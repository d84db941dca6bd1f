"""The messages of the lanes: what is packed comes back, and what is not a message is refused before memory is taken for it."""

from __future__ import annotations

import math
import random
import socket
import struct
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvclient.lanes import frames, put_frames
from kvclient.lanes.frames import FRAME, MAX_HEAD_NBYTES, MAX_KEYS, MAX_NUMBERS, Behalf, Found, Kind, Place, sealed
from kvclient.lanes.put_frames import Lent
from kvclient.lanes.share import Share
from kvclient.lanes.socket_frames import SocketFrames
from kvstore.core import errors
from kvstore.core.api import PutNote, PutReceipt, Status
from kvstore.core.errors import CorruptError, FormatError, KVError
from kvstore.core.key import ChunkKey
from tests.lanes.raw import soon

FEW = settings(max_examples=60, derandomize=True)
U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
DIGESTS = st.binary(min_size=32, max_size=32)
KEYS = st.builds(ChunkKey, DIGESTS, DIGESTS, DIGESTS)
WORDS = st.text("abcdefghijklmnopqrstuvwxyz_", max_size=14)
PLACES = st.builds(Place, st.integers(0, 2**64 - 2), U64, U64, U32)
STATUSES = st.sampled_from([Status.ABSENT, Status.READY, Status.PENDING])
KEY = ChunkKey(bytes(32), bytes(range(32)), b"v" * 32)
NOTE = PutNote("book", 1.5, True)
SPAN = f"00-{'a' * 32}-{'b' * 16}-01"


def founds(places: st.SearchStrategy[Place | None]) -> st.SearchStrategy[list[Found]]:
    """Return answers to requests for up to 20 chunks."""
    return st.lists(st.builds(Found, STATUSES, WORDS, U64, places), max_size=20)


@FEW
@given(st.sampled_from(Kind), st.integers(0, MAX_HEAD_NBYTES), U64)
def test_a_frame_comes_back(kind: Kind, head_nbytes: int, body_nbytes: int) -> None:
    """In 20 bytes."""
    packed = frames.pack_frame(kind, head_nbytes, body_nbytes)
    assert (len(packed), frames.parse_frame(packed)) == (20, (kind, head_nbytes, body_nbytes))


@FEW
@given(st.lists(KEYS, max_size=20), st.lists(U64, max_size=20))
def test_keys_and_leases_come_back(keys: list[ChunkKey], releases: list[int]) -> None:
    """In their order, repeated ones included."""
    assert frames.parse_keys(frames.pack_keys(keys, releases)) == (keys, tuple(releases))


@FEW
@given(founds(st.none()))
def test_answers_come_back(found: list[Found]) -> None:
    """One per key."""
    assert frames.parse_found(frames.pack_found(found), len(found)) == found


@FEW
@given(founds(st.none() | PLACES))
def test_answers_with_places_come_back(found: list[Found]) -> None:
    """No place is told from a place."""
    assert frames.parse_placed(frames.pack_placed(found), len(found)) == found


@FEW
@given(st.from_regex("[0-9A-Za-z_-]{8,64}|", fullmatch=True), st.from_regex("00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]|", fullmatch=True))
def test_a_request_and_a_span_come_back(request_id: str, traceparent: str) -> None:
    """Both, one of them, or none."""
    behalf = Behalf(request_id, traceparent)
    assert frames.parse_behalf(frames.pack_behalf(behalf)) == behalf


@pytest.mark.parametrize(
    "behalf",
    [
        *(Behalf("short"), Behalf("a" * 65), Behalf("two words"), Behalf("line\nbreak"), Behalf("ümlauts-are-none")),
        *(
            Behalf("", SPAN.upper()),
            Behalf("", SPAN[:-1]),
            Behalf("", SPAN + "-more"),
            Behalf("", f"ff{SPAN[2:]}"),
            Behalf("0123456", SPAN),
        ),
    ],
    ids=str,
)
def test_what_is_no_request_and_no_span_is_refused(behalf: Behalf) -> None:
    """It would be written into logs and traces."""
    with pytest.raises(FormatError, match="on whose behalf"):
        frames.parse_behalf(frames.pack_behalf(behalf))


@FEW
@given(st.text(max_size=200), st.floats(allow_nan=False), st.booleans(), st.binary(max_size=300))
def test_a_note_and_a_header_come_back(source: str, recompute_s: float, durable: bool, header: bytes) -> None:
    """Whatever a writer calls its document; what a store accepts it decides later."""
    note = PutNote(source, recompute_s, durable)
    assert frames.parse_put(frames.pack_put(note, header)) == (note, header)


@FEW
@given(st.binary(min_size=16, max_size=16), st.integers(0, 7), st.integers(1, 1 << 20), st.binary(max_size=300))
def test_a_put_by_several_connections_comes_back(name: bytes, index: int, kib: int, header: bytes) -> None:
    """Which put, and which pieces of it."""
    lent, head = Lent(name, Share(index, 8, (kib + 3) << 10)), frames.pack_put(NOTE, header)
    assert put_frames.parse_lent(put_frames.pack_lent(lent)) == lent
    assert put_frames.parse_put_lent(put_frames.pack_put_lent(lent, NOTE, header)) == (lent, head)


@pytest.mark.parametrize(
    "parse",
    [put_frames.parse_lent, put_frames.parse_put_lent],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("nbytes", [0, 3, 5])
def test_a_head_that_is_too_short_is_refused(parse: Callable[[bytes], object], nbytes: int) -> None:
    """It tells of no connection."""
    with pytest.raises(FormatError):
        parse(sealed(bytes(nbytes)))


def test_a_number_that_is_none_comes_back() -> None:
    """It is the store that refuses it."""
    note, _ = frames.parse_put(frames.pack_put(PutNote(recompute_s=math.nan), b""))
    assert math.isnan(note.recompute_s)


@FEW
@given(KEYS, st.booleans(), WORDS, U64, st.booleans())
def test_a_receipt_comes_back(key: ChunkKey, stored: bool, tier: str, nbytes: int, is_durable: bool) -> None:
    """For the chunk that was put."""
    receipt = PutReceipt(key, stored, tier, nbytes, is_durable)
    assert frames.parse_receipt(frames.pack_receipt(receipt)) == receipt


@FEW
@given(st.sampled_from(sorted(name for name in vars(errors) if name.endswith("Error"))), st.text(max_size=200))
def test_an_error_of_ours_comes_back(name: str, text: str) -> None:
    """With its class and its sentence, in which a zero byte would end it."""
    kind: type[KVError] = getattr(errors, name)
    back = frames.parse_error(frames.pack_error(kind(text)))
    assert (type(back), str(back)) == (kind, text.replace("\0", "").encode(errors="replace").decode())


@pytest.mark.parametrize("name", ["SystemExit", "annotations", "ClassVar", "error_for_code", "__name__", ""])
def test_an_error_names_nothing_but_an_error_of_ours(name: str) -> None:
    """What else stands in that file is never called."""
    assert type(frames.parse_error(name.encode() + b"\0boom")) is KVError


def test_an_error_that_is_not_ours_says_nothing_of_the_inside() -> None:
    """Not its text and not its class."""
    assert b"secret" not in frames.pack_error(ZeroDivisionError("secret"))


PARSERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "keys": (frames.parse_keys, frames.pack_keys([KEY, KEY], [7])),
    "found": (lambda head: frames.parse_found(head, 2), frames.pack_found([Found(Status.READY, "memory", 9)] * 2)),
    "placed": (lambda head: frames.parse_placed(head, 1), frames.pack_placed([Found(Status.READY, "memory", 9, Place(1, 2, 3, 4))])),
    "put": (frames.parse_put, frames.pack_put(PutNote("a source", 1.0), b"a header")),
    "behalf": (frames.parse_behalf, frames.pack_behalf(Behalf("0123456789abcdef", SPAN))),
    "receipt": (lambda head: frames.parse_receipt(head), frames.pack_receipt(PutReceipt(KEY, True, "memory", 9, False))),
    "count": (frames.parse_count, frames.pack_count(5)),
}
SEALED = {name: both for name, both in PARSERS.items() if name != "count"}


@pytest.mark.parametrize(("parse", "head"), PARSERS.values(), ids=PARSERS.keys())
def test_every_truncation_of_a_head_is_refused(parse: Callable[[bytes], object], head: bytes) -> None:
    """At each byte."""
    for nbytes in range(len(head)):
        with pytest.raises((FormatError, CorruptError)):
            parse(head[:nbytes])


@pytest.mark.parametrize(("parse", "head"), SEALED.values(), ids=SEALED.keys())
def test_every_truncation_of_a_head_is_refused_even_with_the_right_sum(parse: Callable[[bytes], object], head: bytes) -> None:
    """Whoever lies can compute a CRC."""
    for nbytes in range(len(head) - 4):
        with pytest.raises(FormatError):
            parse(sealed(head[:nbytes]))
    with pytest.raises(FormatError):
        parse(sealed(head[:-4] + b"x"))


@pytest.mark.parametrize(("parse", "head"), SEALED.values(), ids=SEALED.keys())
def test_every_flipped_bit_of_a_head_is_found(parse: Callable[[bytes], object], head: bytes) -> None:
    """A source, a lease or a receipt is in no other digest."""
    for bit in range(8 * len(head)):
        bad = bytearray(head)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptError):
            parse(bytes(bad))


@FEW
@given(st.binary(max_size=400), st.integers(0, 50))
def test_noise_with_the_right_sum_is_parsed_or_refused(noise: bytes, n_keys: int) -> None:
    """By a FormatError and no other."""
    assert isinstance(frames.parse_error(noise), KVError)
    for parse in (
        frames.parse_keys,
        frames.parse_put,
        frames.parse_behalf,
        lambda head: frames.parse_found(head, n_keys),
        lambda head: frames.parse_placed(head, n_keys),
        lambda head: frames.parse_receipt(head),
    ):
        with suppress(FormatError):
            parse(sealed(noise))


@pytest.mark.parametrize(
    ("n_keys", "n_releases"), [(MAX_KEYS + 1, 0), (0, MAX_NUMBERS + 1), (2**32 - 1, 0), (0, 2**32 - 1), (2**32 - 1, 2**32 - 1)]
)
def test_a_request_that_claims_too_much_is_refused_without_memory_for_it(n_keys: int, n_releases: int) -> None:
    """A count is compared with what came before anything is made of it."""
    head = sealed(struct.pack("<II", n_keys, n_releases) + bytes(2000))
    tracemalloc.start()
    with pytest.raises(FormatError, match="at most"):
        frames.parse_keys(head)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


BAD_FRAMES = {
    "another version": struct.pack("<4sB3xIQ", b"KVL2", 2, 0, 0),
    "kind zero": struct.pack("<4sB3xIQ", b"KVL1", 0, 0, 0),
    "an unknown kind": struct.pack("<4sB3xIQ", b"KVL1", 200, 0, 0),
    "a head too long by one": struct.pack("<4sB3xIQ", b"KVL1", 2, MAX_HEAD_NBYTES + 1, 0),
    "the longest head": struct.pack("<4sB3xIQ", b"KVL1", 2, 2**32 - 1, 0),
    "noise": random.Random(0).randbytes(FRAME.size),
    "another protocol": b"GET / HTTP/1.1\r\n\r\n\r\n",
}


@pytest.mark.parametrize("data", BAD_FRAMES.values(), ids=BAD_FRAMES.keys())
def test_a_frame_that_is_none_is_refused_without_memory_for_its_head(data: bytes) -> None:
    """It is read from a socket as any other."""
    ours, theirs = socket.socketpair()
    reader = SocketFrames(ours, "peer")
    theirs.sendall(data)
    tracemalloc.start()
    with pytest.raises(FormatError, match="not a message"):
        reader.receive(soon())
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
    reader.close()
    theirs.close()


@pytest.mark.parametrize("reads_ahead", [True, False])
@pytest.mark.parametrize("step", [1, 7, 20, 4096, 1 << 20])
def test_messages_come_whole_however_they_are_cut_on_the_way(step: int, reads_ahead: bool) -> None:
    """Small and large heads, with and without a body, one right behind the other."""
    rng = random.Random(step)
    sent = [(rng.randbytes(n_head), rng.randbytes(n_body)) for n_head, n_body in ((0, 10), (5, 0), (900, 0), (20_000, 5000))]
    data = b"".join(frames.pack_frame(Kind.FOUND, len(head), len(body)) + head + body for head, body in sent)
    ours, theirs = socket.socketpair()
    reader = SocketFrames(ours, "peer")
    reader.reads_ahead = reads_ahead
    writer = threading.Thread(target=lambda: [theirs.sendall(data[at : at + step]) for at in range(0, len(data), step)])
    writer.start()
    for head, body in sent:
        assert reader.receive(soon()) == (Kind.FOUND, head, len(body))
        room = memoryview(bytearray(len(body)))
        filled = 0
        while filled < len(body):
            filled += reader.receive_into(room[filled:], soon())
        assert room == body
    writer.join()
    reader.close()
    theirs.close()
