"""The messages of the lanes, in bytes; `proto/LANES.md` describes the same. Client and server share this file.

Integers are little-endian. Every message begins with a frame of 20 bytes:

    0   4   magic "KVL1"              8   4   length of the head
    4   1   kind                      12  8   length of the body
    5   3   zero

What comes from the wire is checked here; anything unexpected raises FormatError. The heads that say which chunk, where, how long and whose
end with a CRC-32 of what stands before it, so that a bit that changed on the way is never believed: CorruptError. The chunks themselves
have digests of their own.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

from kvclient.lanes.share import MAX_STRIPES, MIN_PIECE_NBYTES, Share
from kvstore.core import calling, errors, tracing
from kvstore.core.api import PutNote, PutReceipt, Status
from kvstore.core.blob import MAX_MANIFEST_NBYTES, Buffer
from kvstore.core.directory import SALT_NBYTES
from kvstore.core.errors import CorruptError, FormatError, KVError, with_hint
from kvstore.core.key import ChunkKey

MAX_KEYS = 16384
MAX_NUMBERS = 4096
MAX_HEAD_NBYTES = MAX_MANIFEST_NBYTES + (64 << 10)
FRAME = struct.Struct("<4sB3xIQ")
KEY_NBYTES = 96
_MAGIC = b"KVL1"
_ENTRY = struct.Struct("<B15sQ")
_PLACE = struct.Struct("<QQQI")
_IN_BODY = (1 << 64) - 1
_COUNTS = struct.Struct("<II")
_SHARE = struct.Struct("<III")
_NOTE = struct.Struct("<d?xHI")
_RECEIPT = struct.Struct(f"<??14sQ{KEY_NBYTES}s")
_COUNT = struct.Struct("<Q")
_BEHALF = struct.Struct("<BB")
_DIRECTORY = struct.Struct(f"<QQ{SALT_NBYTES}s")
_SEAL = struct.Struct("<I")
_INTACT = 0x2144DF1C  # the CRC-32 of whatever ends with its own CRC-32
_STATUSES = (Status.ABSENT, Status.READY, Status.PENDING)
_CODES = {status: code for code, status in enumerate(_STATUSES)}


class Kind(IntEnum):
    """What a message is."""

    HELLO = 1  # head: a ticket. Answered by WELCOME; over shm its head says where the directory is, and the arena's descriptor follows
    GET = 2  # head: keys. Answered by FOUND with the blobs in its body
    VIEW = 3  # head: leases to end, and keys. Answered by PLACED; blobs that lie in the shared arena are not in its body
    PUT = 4  # head: note and the blob's header; body: the rest of the blob. Answered by STORED
    STAGE = 5  # asks for a staging ring. Answered by STAGED with its descriptor
    PUT_STAGED = 6  # as PUT, its body announced by LANDED messages as it is written to the ring. Answered by STORED
    LANDED = 7  # head: so many more bytes are in the ring; from the server: so many were taken from it
    READ = 9  # head: keys, and how often each was read without a request. Not answered
    GET_SHARE = 8  # head: a key, and which pieces of its blob. Answered by FOUND with those pieces in its body
    ON_BEHALF = 10  # head: which request and span the requests behind it serve. Not answered
    LEND = 11  # head: a put by another connection, and which pieces of its body come by this one behind it. Not answered
    PUT_LENT = 12  # as PUT, with the same in front of its head: its body comes in turn by this connection and by those lent to it
    WELCOME = 16
    FOUND = 17
    PLACED = 18
    STORED = 19
    STAGED = 20
    ERROR = 31  # head: name of the error's class, zero byte, text


class Place(NamedTuple):
    """Where a blob lies in the shared arena: its offset in the mapped file, a generation in one of its words, and the lease to end."""

    offset: int
    generation: int
    lease: int
    word: int


class Behalf(NamedTuple):
    """What requests serve: the id of the request that they are part of, and the span below which they are, as it travels; "" for none."""

    request_id: str = ""
    traceparent: str = ""


class DirectoryPlace(NamedTuple):
    """Where the directory lies in the mapped file, how many buckets it has, and the salt of the tenant's fingerprints."""

    offset: int
    n_buckets: int
    salt: bytes


class Found(NamedTuple):
    """What a store has under one key: `text` is the tier of a READY chunk, else the reason; `place` is None for a blob in the body."""

    status: Status
    text: str
    nbytes: int
    place: Place | None = None


def pack_frame(kind: Kind, head_nbytes: int, body_nbytes: int) -> bytes:
    """Return the frame of a message."""
    return FRAME.pack(_MAGIC, kind, head_nbytes, body_nbytes)


def parse_frame(data: Buffer, max_head_nbytes: int = MAX_HEAD_NBYTES) -> tuple[Kind, int, int]:
    """Return kind, length of the head and length of the body."""
    magic, kind, head_nbytes, body_nbytes = FRAME.unpack_from(data)
    if magic != _MAGIC or kind not in _KINDS or head_nbytes > max_head_nbytes:
        raise FormatError("not a message of a lane, or of another version")
    return _KINDS[kind], head_nbytes, body_nbytes


def pack_keys(keys: Sequence[ChunkKey], numbers: Sequence[int] = ()) -> bytes:
    """Return the head of GET, of VIEW with leases to end, and of READ with a count for each key."""
    counts = _COUNTS.pack(len(keys), len(numbers))
    told = struct.pack(f"<{len(numbers)}Q", *numbers) if numbers else b""
    return sealed(b"".join((counts, *[key.to_bytes() for key in keys], told)))


def parse_keys(head: bytes) -> tuple[list[ChunkKey], tuple[int, ...]]:
    """Return the keys and the numbers behind them."""
    head = unsealed(head)
    n_keys, n_numbers = _COUNTS.unpack_from(head) if len(head) >= _COUNTS.size else (0, 0)
    end = _COUNTS.size + KEY_NBYTES * n_keys
    if n_keys > MAX_KEYS or n_numbers > MAX_NUMBERS or len(head) != end + 8 * n_numbers:
        raise FormatError(f"{len(head)} B are not the head of a request for {n_keys} keys; at most {MAX_KEYS} go into one")
    keys = [_known_key(head[at : at + KEY_NBYTES]) for at in range(_COUNTS.size, end, KEY_NBYTES)]
    return keys, struct.unpack_from(f"<{n_numbers}Q", head, end) if n_numbers else ()


def count_keys(head: bytes) -> int:
    """Return how many keys a head claims to hold, before anything else is read of it; at most `MAX_KEYS`."""
    return min(_COUNTS.unpack_from(head)[0], MAX_KEYS) if len(head) >= _COUNTS.size else 0


def pack_share(key: ChunkKey, share: Share) -> bytes:
    """Return the head of GET_SHARE."""
    return sealed(key.to_bytes() + _SHARE.pack(*share.told))


def parse_share(head: bytes) -> tuple[ChunkKey, Share]:
    """Return the key and the share."""
    head = unsealed(head)
    if len(head) != KEY_NBYTES + _SHARE.size:
        raise FormatError(f"{len(head)} B are not the head of a request for a share of a chunk")
    return _known_key(head[:KEY_NBYTES]), checked_share(*_SHARE.unpack_from(head, KEY_NBYTES))


def checked_share(index: int, count: int, piece_nbytes: int) -> Share:
    """Return a share as it came; raises FormatError for one that can't be."""
    if not (index < count <= MAX_STRIPES and piece_nbytes >= MIN_PIECE_NBYTES):
        raise FormatError(f"share {index} of {count} in pieces of {piece_nbytes} B can't be asked for, or sent")
    return Share(index, count, piece_nbytes)


def pack_behalf(behalf: Behalf) -> bytes:
    """Return the head of ON_BEHALF."""
    request_id, traceparent = (text.encode() for text in behalf)
    return sealed(_BEHALF.pack(len(request_id), len(traceparent)) + request_id + traceparent)


def parse_behalf(head: bytes) -> Behalf:
    """Return what the requests behind it serve; each text is checked, since it goes into logs and traces."""
    head = unsealed(head)
    lengths = _BEHALF.unpack_from(head) if len(head) >= _BEHALF.size else (0, 0)
    text, middle = head[_BEHALF.size :].decode("ascii", "replace"), lengths[0]
    behalf = Behalf(text[:middle], text[middle:])
    if (
        len(head) != _BEHALF.size + sum(lengths)
        or not (behalf.request_id == "" or calling.is_request_id(behalf.request_id))
        or not (behalf.traceparent == "" or tracing.is_traceparent(behalf.traceparent))
    ):
        raise FormatError(f"{len(head)} B do not tell on whose behalf requests are made")
    return behalf


def pack_found(found: Iterable[Found]) -> bytes:
    """Return the head of FOUND."""
    return sealed(b"".join([_pack_entry(each) for each in found]))


def parse_found(head: bytes, n_keys: int) -> list[Found]:
    """Return one entry per key."""
    head = unsealed(head)
    if len(head) != _ENTRY.size * n_keys:
        raise FormatError(f"{len(head)} B are not the answer to a request for {n_keys} keys")
    return [_parse_entry(head, at) for at in range(0, len(head), _ENTRY.size)]


def pack_placed(found: Iterable[Found]) -> bytes:
    """Return the head of PLACED."""
    return sealed(b"".join([_pack_entry(each) + _pack_place(each.place) for each in found]))


def parse_placed(head: bytes, n_keys: int) -> list[Found]:
    """Return one entry per key, with places."""
    head = unsealed(head)
    size = _ENTRY.size + _PLACE.size
    if len(head) != size * n_keys:
        raise FormatError(f"{len(head)} B are not the answer to a request for {n_keys} keys")
    return [_parse_entry(head, at, _parse_place(head, at + _ENTRY.size)) for at in range(0, len(head), size)]


def pack_put(note: PutNote, header: Buffer) -> bytes:
    """Return the head of PUT: what the writer says, and header and manifest of the blob."""
    source = note.source.encode()
    return sealed(b"".join((_NOTE.pack(note.recompute_s, note.durable, len(source), len(header)), source, header)))


def parse_put(head: bytes) -> tuple[PutNote, bytes]:
    """Return the note and the blob's first bytes."""
    head = unsealed(head)
    if len(head) < _NOTE.size:
        raise FormatError(f"{len(head)} B are not the head of a put")
    recompute_s, durable, n_source, n_header = _NOTE.unpack_from(head)
    if len(head) != _NOTE.size + n_source + n_header:
        raise FormatError(f"the head of a put should have {_NOTE.size + n_source + n_header} B, got {len(head)} B")
    try:
        source = head[_NOTE.size : _NOTE.size + n_source].decode()
    except UnicodeDecodeError as error:
        raise FormatError("the source of a put is not UTF-8") from error
    return PutNote(source, recompute_s, durable), head[_NOTE.size + n_source :]


def pack_receipt(receipt: PutReceipt) -> bytes:
    """Return the head of STORED."""
    tier, key = receipt.tier.encode()[:14], receipt.key.to_bytes()
    return sealed(_RECEIPT.pack(receipt.stored, receipt.is_durable, tier, receipt.nbytes, key))


def parse_receipt(head: bytes) -> PutReceipt:
    """Return the receipt of a put."""
    head = unsealed(head)
    if len(head) != _RECEIPT.size:
        raise FormatError(f"{len(head)} B are not a receipt")
    stored, is_durable, tier, nbytes, key = _RECEIPT.unpack(head)
    return PutReceipt(ChunkKey.from_bytes(key), stored, _text(tier), nbytes, is_durable)


def pack_count(count: int) -> bytes:
    """Return the head of LANDED, STAGED, and WELCOME over tcp: one number."""
    return _COUNT.pack(count)


def parse_count(head: bytes) -> int:
    """Return the number."""
    if len(head) != _COUNT.size:
        raise FormatError(f"{len(head)} B are not a number of 8 B")
    return int(_COUNT.unpack(head)[0])


def pack_directory(place: DirectoryPlace) -> bytes:
    """Return the head of WELCOME over shm."""
    return sealed(_DIRECTORY.pack(*place))


def parse_directory(head: bytes) -> DirectoryPlace:
    """Return where the directory is."""
    head = unsealed(head)
    if len(head) != _DIRECTORY.size:
        raise FormatError(f"{len(head)} B do not tell where a directory is")
    return DirectoryPlace(*_DIRECTORY.unpack(head))


def pack_error(error: Exception) -> bytes:
    """Return the head of ERROR; what is not an error of ours says nothing of the inside."""
    name, text = (type(error).__name__, str(error)) if isinstance(error, KVError) else ("KVError", "the server failed; its log says why")
    hint = b"\0%d" % math.ceil(1000 * error.retry_after_s) if isinstance(error, KVError) and error.retry_after_s else b""
    return name.encode() + b"\0" + text.replace("\0", "").encode(errors="replace")[:1024] + hint


def parse_error(head: bytes) -> KVError:
    """Return the error that the other side raised."""
    name, _, rest = head.partition(b"\0")
    text, _, hint = rest.partition(b"\0")
    kind = getattr(errors, name.decode("ascii", "replace"), None)
    message = text.decode(errors="replace")
    return with_hint(kind(message) if isinstance(kind, type) and issubclass(kind, KVError) else KVError(message), hint)


def sealed(head: bytes) -> bytes:
    """Return a head with its CRC."""
    return head + _SEAL.pack(crc32(head))


def unsealed(data: bytes) -> bytes:
    """Return what stands before a CRC that matches it."""
    if len(data) < _SEAL.size:
        raise FormatError(f"{len(data)} B are no message of a lane")
    if crc32(data) != _INTACT:
        raise CorruptError(f"{len(data)} B of a message were changed on the way; send it again")
    return data[: -_SEAL.size]


def _pack_entry(found: Found) -> bytes:
    return _ENTRY.pack(_CODES[found.status], found.text.encode()[:15], found.nbytes)


def _parse_entry(head: bytes, at: int, place: Place | None = None) -> Found:
    status, text, nbytes = _ENTRY.unpack_from(head, at)
    if status >= len(_STATUSES):
        raise FormatError(f"status {status} of a chunk is not known here")
    return Found(_STATUSES[status], _text(text), nbytes, place)


def _pack_place(place: Place | None) -> bytes:
    return _PLACE.pack(place.offset, place.generation, place.lease, place.word) if place else _NO_PLACE


def _parse_place(head: bytes, at: int) -> Place | None:
    offset, generation, lease, word = _PLACE.unpack_from(head, at)
    return None if offset == _IN_BODY else Place(offset, generation, lease, word)


def _text(padded: bytes) -> str:
    return padded.rstrip(b"\0").decode("ascii", "replace")


_known_key = lru_cache(16384)(ChunkKey.from_bytes)


_KINDS = {kind.value: kind for kind in Kind}
_NO_PLACE = _PLACE.pack(_IN_BODY, 0, 0, 0)
