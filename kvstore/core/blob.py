"""The stored chunk: a fixed header, a manifest, and one part per layer group. `proto/FORMAT.md` describes the same bytes.

    0   8   magic "KVLARDER"          32  16  xxh3-128 of bytes 0..31 and the manifest
    8   4   format version, 1         48   M  manifest, canonical JSON
    12  4   manifest length M         ..      parts, each at a multiple of 64, zero bytes between
    16  8   length of the whole blob
    24  8   zero

Integers are little-endian. Every byte is covered: the header and manifest by the digest at 32, each part by its digest in the
manifest, the padding by having to be zero.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import xxhash

from kvstore.core import canonical
from kvstore.core.errors import CorruptError, FormatError
from kvstore.core.key import ChunkKey
from kvstore.core.manifest import Manifest, PartSpec

MAGIC = b"KVLARDER"
VERSION = 1
HEADER_NBYTES = 48
ALIGNMENT = 64
MAX_MANIFEST_NBYTES = 4 << 20
_SMALL_HEADER_NBYTES = 16 << 10
_HEAD = struct.Struct("<8sIIQQ")

Buffer = bytes | bytearray | memoryview


def xxh3(*pieces: Buffer) -> bytes:
    """Return the xxh3-128 (16 bytes, canonical big-endian form, seed 0) of the pieces joined."""
    state = xxhash.xxh3_128()
    for piece in pieces:
        state.update(piece)
    return state.digest()


def align(offset: int) -> int:
    """Return the first multiple of the alignment that is not below `offset`."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Header:
    """The fixed header, its manifest parsed, and the length of the whole blob in bytes."""

    manifest: Manifest
    manifest_nbytes: int
    nbytes: int

    @property
    def parts_offset(self) -> int:
        """Where the first part may begin: the end of header and manifest."""
        return HEADER_NBYTES + self.manifest_nbytes

    @cached_property
    def key(self) -> ChunkKey:
        """The chunk key that the manifest claims."""
        return key_of(self.manifest)


def build_blob(manifest: Manifest, payloads: Sequence[Sequence[Buffer]]) -> bytearray:
    """Return a whole blob; `payloads[i]` holds the fields of `manifest.parts[i]` in order.

    Field offsets, part offsets, lengths and digests are filled in here, whatever the given manifest says. Copies each payload once.
    """
    parts = [_place_fields(part, fields) for part, fields in zip(manifest.parts, payloads, strict=True)]
    # Part offsets stand in the manifest and depend on its length: give every offset its final number of digits first.
    size, placed = 0, parts
    for _ in range(8):
        placed, end = _place_parts(parts, align(HEADER_NBYTES + size))
        text = canonical.dumps(replace(manifest, parts=tuple(placed)).to_json())
        if len(text) == size:
            break
        size = len(text)
    else:
        raise FormatError("the manifest's length does not settle")
    head = _HEAD.pack(MAGIC, VERSION, size, end, 0)
    blob = bytearray(end)
    blob[: HEADER_NBYTES + size] = head + xxh3(head, text) + text
    for part, fields in zip(placed, payloads, strict=True):
        for field, data in zip(part.fields, fields, strict=True):
            at = part.offset + field.offset
            blob[at : at + field.nbytes] = memoryview(data).cast("B")
    return blob


def _place_fields(part: PartSpec, payload: Sequence[Buffer]) -> PartSpec:
    """Return the part with field offsets, its length and its digest."""
    offset, fields = 0, []
    pieces: list[Buffer] = []
    for field, data in zip(part.fields, payload, strict=True):
        view = memoryview(data).cast("B")
        start = align(offset)
        pieces += [bytes(start - offset), view]
        fields.append(replace(field, offset=start, nbytes=view.nbytes))
        offset = start + view.nbytes
    return replace(part, fields=tuple(fields), nbytes=offset, xxh3=xxh3(*pieces).hex())


def _place_parts(parts: Sequence[PartSpec], offset: int) -> tuple[list[PartSpec], int]:
    """Return the parts laid out from `offset`, and the end of the last one."""
    placed = []
    for part in parts:
        placed.append(replace(part, offset=align(offset)))
        offset = align(offset) + part.nbytes
    return placed, offset


def header_nbytes(head: Buffer) -> int:
    """Return how many bytes of a blob hold header and manifest, from its first 48 bytes; hostile lengths raise FormatError."""
    if len(head) < HEADER_NBYTES:
        raise FormatError(f"a chunk has a header of {HEADER_NBYTES} B, got {len(head)} B")
    magic, version, manifest_nbytes, nbytes, zero = _HEAD.unpack_from(head)
    if magic != MAGIC:
        raise FormatError("not a Larder chunk: the magic number is wrong")
    if version != VERSION:
        raise FormatError(f"chunk format version {version} is not known here; this reader knows version {VERSION}")
    if zero or manifest_nbytes > MAX_MANIFEST_NBYTES or nbytes < HEADER_NBYTES + manifest_nbytes:
        raise FormatError(f"impossible header: manifest of {manifest_nbytes} B in a chunk of {nbytes} B")
    return int(HEADER_NBYTES + manifest_nbytes)


def blob_nbytes(head: Buffer) -> int:
    """Return the length that a blob claims to have, from its first 48 bytes."""
    return int(_HEAD.unpack_from(head)[3])


def parse_header(head: Buffer) -> Header:
    """Parse and verify header and manifest; `head` holds at least `header_nbytes(head)` bytes.

    Raises FormatError for what is no chunk and CorruptError when the digest does not match.
    """
    end = header_nbytes(head)
    if len(head) < end:
        raise FormatError(f"header and manifest take {end} B, got {len(head)} B")
    text = bytes(memoryview(head)[:end])
    return _known_header(text) if end <= _SMALL_HEADER_NBYTES else _parse_header(text)


def _parse_header(text: bytes) -> Header:
    """Parse and verify header and manifest; equal bytes always give an equal header."""
    if xxh3(text[: _HEAD.size], text[HEADER_NBYTES:]) != text[_HEAD.size : HEADER_NBYTES]:
        raise CorruptError("the digest of the chunk's header and manifest does not match")
    nbytes = int(_HEAD.unpack_from(text)[3])
    manifest = Manifest.from_json(canonical.loads(text[HEADER_NBYTES:]))
    _check_places(manifest, len(text), nbytes)
    return Header(manifest, len(text) - HEADER_NBYTES, nbytes)


_known_header = lru_cache(1024)(_parse_header)  # a chunk is read more often than written, and checking it takes longer than its digest


def _check_places(manifest: Manifest, offset: int, nbytes: int) -> None:
    """Raise FormatError unless the parts follow each other, aligned, and end where the blob ends."""
    for part in manifest.parts:
        if part.offset != align(offset):
            raise FormatError(f"part {part.group} begins at {part.offset}, not at {align(offset)}")
        offset = part.offset + part.nbytes
    if offset != nbytes:
        raise FormatError(f"the parts end at {offset} B but the chunk has {nbytes} B")


def verify_part(part: PartSpec, data: Buffer) -> None:
    """Raise CorruptError unless `data` is the part that the manifest promised."""
    if len(data) != part.nbytes or xxh3(data).hex() != part.xxh3:
        raise CorruptError(f"part {part.group}: {len(data)} B do not match the digest of {part.nbytes} B")


def verify_blob(data: Buffer) -> Header:
    """Parse a whole blob and verify every byte of it; raises FormatError or CorruptError."""
    header = parse_header(data)
    view = memoryview(data)
    if view.nbytes != header.nbytes:
        raise CorruptError(f"the chunk should have {header.nbytes} B, got {view.nbytes} B")
    end = header.parts_offset
    for part in header.manifest.parts:
        if any(view[end : part.offset]):
            raise CorruptError(f"the padding before part {part.group} is not zero")
        end = part.offset + part.nbytes
        verify_part(part, view[part.offset : end])
    return header


def part_fields(part: PartSpec, data: Buffer) -> Mapping[str, memoryview]:
    """Return views of a part's fields by name; `data` is the part, verified."""
    view = memoryview(data).cast("B")
    return {f.name: view[f.offset : f.offset + f.nbytes] for f in part.fields}


class BufferedBlob:
    """A whole blob in memory, read part by part; each part is verified when it is asked for.

    Implements `kvstore.core.api.BlobReader`.
    """

    def __init__(self, data: Buffer, tier: str) -> None:
        self.header = parse_header(data)
        self.tier = tier
        self._view: memoryview | None = memoryview(data)
        if self._view.nbytes != self.header.nbytes:
            raise CorruptError(f"the chunk should have {self.header.nbytes} B, got {self._view.nbytes} B")

    @property
    def manifest(self) -> Manifest:
        """The verified manifest."""
        return self.header.manifest

    @property
    def nbytes(self) -> int:
        """Bytes of the whole blob."""
        return self.header.nbytes

    def part(self, index: int) -> memoryview:
        """Return part `index`, verified; raises CorruptError."""
        if self._view is None:
            raise FormatError("the chunk was closed")
        spec = self.manifest.parts[index]
        data = self._view[spec.offset : spec.offset + spec.nbytes]
        verify_part(spec, data)
        return data

    def close(self) -> None:
        """Drop the buffer; views handed out stay valid as long as their holders keep them."""
        self._view = None

    def __enter__(self) -> BufferedBlob:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def key_of(manifest: Manifest) -> ChunkKey:
    """Return the chunk key that a manifest claims."""
    return ChunkKey(manifest.namespace, manifest.content, manifest.codec.variant())


def iter_pieces(data: Buffer, piece_nbytes: int) -> Iterator[memoryview]:
    """Cut a buffer into consecutive views of at most `piece_nbytes`."""
    view = memoryview(data)
    return (view[at : at + piece_nbytes] for at in range(0, view.nbytes, piece_nbytes))
