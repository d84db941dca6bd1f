"""Every parser of bytes that come from outside."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from kvclient import wire
from kvclient.cluster.members import Members
from kvclient.lanes import frames, put_frames
from kvclient.lanes.share import Share
from kvproto.v1 import store_pb2 as pb
from kvstore.core import canonical
from kvstore.core.api import Entry, Explanation, Hit, PutNote, PutReceipt, Scope, Status, StoreStats, TierStats
from kvstore.core.blob import HEADER_NBYTES, align, header_nbytes, parse_header, verify_blob, xxh3
from kvstore.core.directory import parse_entry
from kvstore.core.epochs import EpochAnswer, prove
from kvstore.core.errors import FormatError
from kvstore.core.key import ChunkKey
from kvstore.core.pool import BufferPool
from kvstore.core.tokens import parse_tokens
from kvstore.server.access.auth import TokenAuthenticator, known_tokens
from kvstore.server.access.jwt_tokens import JwtVerifier, parse_jwks
from kvstore.server.lanes.session import announced_nbytes
from kvstore.simulate.trace import HEADER, Asked, TraceRequest, read_trace, write_request
from kvstore.store import sealed
from kvstore.store.encrypted import EncryptedTier
from kvstore.store.epochs import Epochs
from kvstore.store.key_ring import KeyRing, parse_key_ring
from kvstore.store.memory import MemoryTier
from kvstore.store.record import HEAD_NBYTES, meta_end, parse_record
from kvstore.store.redis.record import make_index, parse_index
from kvstore.store.redis.resp import Connection
from kvworker.ingest.redis_records import Head, Source, place_from_bytes, place_to_bytes
from tests.fuzz.campaign import Target
from tests.fuzz.lane_sessions import sessions
from tests.server.chunks import key, make_blob
from tests.server.issuer import make_token, public_jwk, write_jwks
from tests.store.chunks import make_record

M = TypeVar("M", bound=Message)

BLOB = bytes(make_blob(n_parts=2, part_nbytes=40))
KEY = key(BLOB)
STORAGE_KEY, RECORD = make_record(1, 40)
BEHALF = frames.pack_behalf(frames.Behalf("0123456789abcdef", f"00-{'a' * 32}-{'b' * 16}-01"))
RING = KeyRing({"first": bytes(range(32))}, "first")


def spelled_again(text: bytes) -> bytes:
    """Return JSON in its canonical spelling; what is none, as it is."""
    try:
        return canonical.dumps(json.loads(text))
    except (ValueError, RecursionError):
        return text


def repair_blob(data: bytes) -> bytes:
    """Make a chunk's header fit its manifest: spelling, lengths and digest. The manifest ends where the last brace does."""
    if len(data) < HEADER_NBYTES or (end := data.rfind(b'"}') + 2) < HEADER_NBYTES:
        return data
    text = spelled_again(data[HEADER_NBYTES:end])
    body = data[align(end) :]
    nbytes = align(HEADER_NBYTES + len(text)) + len(body)
    head = data[:12] + struct.pack("<IQQ", len(text), nbytes, 0)
    return (head + xxh3(head, text) + text).ljust(nbytes - len(body), b"\0") + body


def repair_record(data: bytes) -> bytes:
    """Make a record's head fit its meta, and its blob's header its manifest."""
    if len(data) < HEAD_NBYTES or (end := data.find(b"}", HEAD_NBYTES) + 1) < HEAD_NBYTES:
        return data
    text, blob = spelled_again(data[HEAD_NBYTES:end]), repair_blob(data[align(end) :])
    start = align(HEAD_NBYTES + len(text))
    head = data[:12] + struct.pack("<IQQ", len(text), start + len(blob), 0) + data[32:64]
    return (head + xxh3(head, text) + text).ljust(start, b"\0") + blob


def repair_sealed(data: bytes) -> bytes:
    """Make the digest of an encrypted record's outer head right; its meta stays."""
    try:
        end = meta_end(data)
    except FormatError:
        return data
    return data[:64] + xxh3(data[:64], data[HEAD_NBYTES:end]) + data[HEAD_NBYTES:]


def repair_head(data: bytes) -> bytes:
    """Make the sum of a lane's head right."""
    return frames.sealed(data[:-4])


def of_message(kind: type[M], read: Callable[[M], object]) -> Callable[[bytes], object]:
    """Return a parser of a message's bytes; what is no message at all never reaches us."""

    def parse(data: bytes) -> object:
        message = kind()
        try:
            message.ParseFromString(data)
        except DecodeError:
            raise FormatError("no message") from None
        return read(message)

    return parse


class Replies:
    """A channel to a Redis that says what it is given, and then nothing any more."""

    def __init__(self, data: bytes) -> None:
        self._left = memoryview(data)

    def receive(self, room: memoryview, until: float) -> int:
        """Give what there is."""
        taken = min(room.nbytes, self._left.nbytes)
        if not taken:
            raise ConnectionError("it closed the connection")
        room[:taken], self._left = self._left[:taken], self._left[taken:]
        return taken

    def receive_all(self, room: memoryview, until: float) -> None:
        """Fill the room."""
        while room.nbytes:
            room = room[self.receive(room, until) :]

    def send(self, parts: object, until: float) -> None:
        """Take whatever it is."""

    def is_stale(self) -> bool:
        """Tell that it is not."""
        return False

    def close(self) -> None:
        """Do nothing."""


def read_replies(data: bytes) -> None:
    """Read four replies of Redis, one of them in place."""
    connection = Connection(Replies(data), "here", 5.0)
    for _ in range(4):
        connection.ask(b"GET", b"k")
    for _ in range(3):
        connection.reply(64)
    connection.land(memoryview(bytearray(10)))


def read_frame(data: bytes) -> object:
    """Read a frame, and the head behind it as what it says it is; it is read when all of its bytes are there."""
    if len(data) < frames.FRAME.size:
        raise FormatError("the connection was closed")
    kind, head_nbytes, _ = frames.parse_frame(data[: frames.FRAME.size])
    head = data[frames.FRAME.size : frames.FRAME.size + head_nbytes]
    parsers: dict[frames.Kind, Callable[[bytes], object]] = {
        frames.Kind.GET: frames.parse_keys,
        frames.Kind.PUT: read_put,
        frames.Kind.GET_SHARE: frames.parse_share,
        frames.Kind.ON_BEHALF: frames.parse_behalf,
        frames.Kind.LEND: put_frames.parse_lent,
        frames.Kind.PUT_LENT: read_put_lent,
        frames.Kind.STORED: frames.parse_receipt,
        frames.Kind.ERROR: frames.parse_error,
    }
    return parsers.get(kind, bytes)(head)


def read_put(head: bytes) -> object:
    """Read the head of a put as the store does."""
    note, header = frames.parse_put(head)
    return note, announced_nbytes(header), parse_header(header)


def read_put_lent(head: bytes) -> object:
    """Read the head of a put by several connections."""
    lent, put = put_frames.parse_put_lent(head)
    return lent, read_put(put)


def read_share(head: bytes) -> object:
    """Read a share and ask it for what it covers."""
    _, share = frames.parse_share(head)
    return share.nbytes(1 << 24)


def read_sealed(data: bytes) -> object:
    """Read an encrypted record out of a tier."""
    outer = MemoryTier(1 << 20)
    outer.put(STORAGE_KEY, [data])
    landing = EncryptedTier(outer, lambda: RING, BufferPool(0)).get(STORAGE_KEY)
    return landing.fill(landing.nbytes) if landing else None


def files_in(folder: Path) -> dict[str, Target]:
    """Return the parsers of files, which are written into a folder."""
    names = (folder / f"input-{number}" for number in count())
    trace_path, epochs_path = next(names), next(names)
    requests = [TraceRequest(0.5, (Asked("a", 3, 9), Asked("b", 4)), 5, 0.1, 0.2), TraceRequest(1, (), 1)]
    trace = "\n".join([HEADER, *map(write_request, requests)]).encode()
    epochs = Epochs(epochs_path)
    epochs.raise_epoch("source", "alpha", "book")
    epochs_seed = epochs_path.read_bytes()

    def read_epochs(data: bytes) -> object:
        epochs_path.write_bytes(data)
        return Epochs(epochs_path).current("source", "alpha", "book")

    def read_trace_of(data: bytes) -> object:
        trace_path.write_bytes(data)
        return read_trace(trace_path)

    return {"epochs": Target(read_epochs, (epochs_seed,)), "trace": Target(read_trace_of, (trace,))}


def callers_in(folder: Path) -> dict[str, Target]:
    """Return the parsers of what callers and issuers say of who they are."""
    verifier = JwtVerifier(write_jwks(folder / "jwks.json", "first"))
    known = known_tokens(())
    authenticate = TokenAuthenticator(lambda: known, verifier)

    def read_bearer(data: bytes) -> object:
        return authenticate([("authorization", data.decode("latin-1"))])

    jwks = json.dumps({"keys": [public_jwk("first"), public_jwk("second")]}).encode()
    tokens = f"# tenant token\nalpha {'t' * 20} admin\nbeta {'u' * 20}\n".encode()
    keys = f"# id key\nfirst {'0a' * 32}\nsecond {'0b' * 32}\n".encode()
    return {
        "bearer token": Target(read_bearer, (b"Bearer " + make_token(exp=2**33).encode(),)),
        "jwks": Target(lambda data: parse_jwks(data, "jwks"), (jwks,)),
        "key ring": Target(lambda data: parse_key_ring(data, "keys"), (keys,)),
        "tokens": Target(lambda data: parse_tokens(data.decode("utf-8", "replace"), "tokens"), (tokens,)),
    }


def stored() -> dict[str, Target]:
    """Return the parsers of what lies in tiers."""
    encrypted = b"".join(map(bytes, sealed.seal(RING, STORAGE_KEY, [RECORD])))
    index = make_index(STORAGE_KEY, 3 << 20)
    return {
        "chunk": Target(verify_blob, (BLOB,), repair_blob),
        "record": Target(lambda data: parse_record(STORAGE_KEY, data), (RECORD,), repair_record),
        "encrypted record": Target(read_sealed, (encrypted,), repair_sealed),
        "redis index": Target(
            lambda data: parse_index(STORAGE_KEY, data, 1 << 30), (index,), lambda data: data[:-16] + xxh3(STORAGE_KEY, data[:-16])
        ),
        "redis replies": Target(read_replies, (b"+OK\r\n:7\r\n$3\r\nabc\r\n$10\r\n0123456789\r\n", b"$-1\r\n:-1\r\n+x\r\n-OOM full\r\n")),
        "shared directory": Target(lambda data: parse_entry(data[:64].ljust(64, b"\0")), (bytes(64), struct.pack("<8Q", *range(8)))),
    }


def on_lanes() -> dict[str, Target]:
    """Return the parsers of what comes over the lanes' sockets."""
    place = frames.Place(4096, 7, 3, 5)
    found = [frames.Found(Status.READY, "memory", 100, place), frames.Found(Status.ABSENT, "never_stored", 0)]
    put = frames.pack_put(PutNote("book", 1.5, True), BLOB[: header_nbytes(BLOB)])
    receipt = frames.pack_receipt(PutReceipt(KEY, True, "memory", len(BLOB), False))
    share = frames.pack_share(KEY, Share(0, 2, 1 << 20))
    lent = put_frames.Lent(bytes(range(16)), Share(0, 2, 1 << 20))
    puts = {
        frames.Kind.LEND: put_frames.pack_lent(lent),
        frames.Kind.PUT_LENT: put_frames.pack_put_lent(lent, PutNote("book", 1.5, True), BLOB[: header_nbytes(BLOB)]),
    }
    heads: dict[str, Target] = {
        "keys": Target(frames.parse_keys, (frames.pack_keys([KEY, KEY], [1, 2, 3]),), repair_head),
        "share": Target(read_share, (share,), repair_head),
        "put": Target(read_put, (put,), repair_head),
        "lent": Target(put_frames.parse_lent, (puts[frames.Kind.LEND],), repair_head),
        "put lent": Target(read_put_lent, (puts[frames.Kind.PUT_LENT],), repair_head),
        "behalf": Target(frames.parse_behalf, (BEHALF, frames.pack_behalf(frames.Behalf("request-7"))), repair_head),
        "found": Target(lambda data: frames.parse_found(data, 2), (frames.pack_found(found),), repair_head),
        "placed": Target(lambda data: frames.parse_placed(data, 2), (frames.pack_placed(found),), repair_head),
        "receipt": Target(frames.parse_receipt, (receipt,), repair_head),
        "count": Target(frames.parse_count, (frames.pack_count(9),)),
        "directory place": Target(frames.parse_directory, (frames.pack_directory(frames.DirectoryPlace(64, 8, bytes(16))),), repair_head),
        "error": Target(frames.parse_error, (b"QuotaError\0full\0120", b"KVError\0text")),
    }
    kinds = {
        **puts,
        frames.Kind.PUT: put,
        frames.Kind.STORED: receipt,
        frames.Kind.GET_SHARE: share,
        frames.Kind.ON_BEHALF: BEHALF,
        frames.Kind.ERROR: b"AuthError\0no",
    }
    whole = tuple(frames.pack_frame(kind, len(head), 0) + head for kind, head in kinds.items())
    return {**{f"lane {name}": target for name, target in heads.items()}, "lane frame": Target(read_frame, whole)}


def in_messages() -> dict[str, Target]:
    """Return the readers of protobuf messages."""
    hit = Hit(KEY, Status.READY, "memory", 100)
    entry = Entry(KEY, "alone", 7, 100, "raw", ("memory",), "book")
    stats = StoreStats({"hits": 1.0}, (TierStats("memory", 1, 2, 3, True, False),))
    explanation = Explanation(hit, 1, 2, ("why",))
    scopes = (Scope("tenant"), Scope("model", "ab" * 32), Scope("source", "book"))
    lookup = pb.LookupRequest(keys=[wire.key_to_wire(KEY)], lease_s=math.pi)
    return {
        "message keys": Target(of_message(pb.LookupRequest, lambda m: wire.keys_from_wire(m.keys)), (lookup.SerializeToString(),)),
        "message hit": Target(of_message(pb.Hit, wire.hit_from_wire), (wire.hit_to_wire(hit).SerializeToString(),)),
        "message entry": Target(of_message(pb.ListResponse, wire.entry_from_wire), (wire.entry_to_wire(entry).SerializeToString(),)),
        "message stats": Target(of_message(pb.StatsResponse, wire.stats_from_wire), (wire.stats_to_wire(stats).SerializeToString(),)),
        "message scope": Target(
            of_message(pb.InvalidateRequest, wire.scope_from_wire), tuple(wire.scope_to_wire(scope).SerializeToString() for scope in scopes)
        ),
        "message explanation": Target(
            of_message(pb.ExplainResponse, wire.explanation_from_wire), (wire.explanation_to_wire(explanation).SerializeToString(),)
        ),
        "message epochs": Target(of_message(pb.EpochsResponse, lambda m: wire.epoch_answer_from_wire([m])), _epochs_seeds()),
        "chunk key": Target(ChunkKey.from_bytes, (KEY.to_bytes(),)),
    }


def _epochs_seeds() -> tuple[bytes, ...]:
    """Return what a store says of its epochs, known or not."""
    epochs = {scope: prove(bytes(32), scope, 3) for scope in (Scope("tenant"), Scope("source", "book"))}
    answers = (EpochAnswer("name", bytes(16), epochs), EpochAnswer("", bytes(16), None))
    return tuple(message.SerializeToString() for answer in answers for message in wire.epoch_answer_to_wire(answer))


def shared_by_workers() -> dict[str, Target]:
    """Return the parsers of a catalog that others can write to, and of where stores are."""
    head = Head(KEY.content, "book", 3, "a text", 40).to_bytes()
    source = Source({"document": [KEY.content], "alone": []}, frozenset([KEY.content, KEY.variant])).to_bytes("book")
    return {
        "catalog head": Target(Head.from_bytes, (head,), spelled_again),
        "catalog source": Target(lambda data: Source.from_bytes(data, "book"), (source,), spelled_again),
        "catalog place": Target(place_from_bytes, (place_to_bytes("book", 7),)),
        "addresses": Target(lambda data: Members.parse(data.decode("latin-1")), (b"dns:stores:7420", b"a:1,[::1]:2")),
    }


def all_targets(folder: Path) -> dict[str, Target]:
    """Return every target; those that read files write them into the folder."""
    return {**stored(), **on_lanes(), **sessions(), **in_messages(), **shared_by_workers(), **callers_in(folder), **files_in(folder)}


NAMES = (
    "chunk", "record", "encrypted record", "redis index", "redis replies", "shared directory", "lane keys", "lane share", "lane put",
    "lane behalf", "lane lent", "lane put lent",
    "lane found", "lane placed", "lane receipt", "lane count", "lane directory place", "lane error", "lane frame",
    "lane session", "message keys", "message hit", "message entry", "message stats", "message scope", "message explanation",
    "message epochs", "chunk key", "bearer token", "jwks",
    "key ring", "tokens", "epochs", "trace", "catalog head", "catalog source", "catalog place", "addresses",
)  # fmt: skip
