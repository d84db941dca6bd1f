"""Blobs: what is built reads back, and nothing else does."""

from __future__ import annotations

import random
import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.core import canonical
from kvstore.core.blob import (
    HEADER_NBYTES,
    MAX_MANIFEST_NBYTES,
    BufferedBlob,
    Header,
    align,
    build_blob,
    header_nbytes,
    iter_pieces,
    key_of,
    parse_header,
    part_fields,
    verify_blob,
    xxh3,
)
from kvstore.core.errors import CorruptError, FormatError, KVError
from kvstore.core.key import Kind
from kvstore.core.manifest import FieldSpec, Manifest, PartSpec
from kvstore.core.stages import PipelineSpec, StageSpec

NAMESPACE, CONTENT = bytes(range(32)), bytes(range(32, 64))
SIZES = st.lists(st.lists(st.sampled_from([1, 2, 63, 64, 65, 127, 128, 129, 1000]), min_size=1, max_size=3), min_size=1, max_size=4)


def manifest_of(sizes: list[list[int]]) -> Manifest:
    """Return a manifest with one part per list and one field of bytes per size."""
    parts = tuple(
        PartSpec(group, (group,), 1, 1, 1, tuple(FieldSpec(f"f{n}", "uint8", (size,)) for n, size in enumerate(fields)))
        for group, fields in enumerate(sizes)
    )
    return Manifest(NAMESPACE, CONTENT, Kind.ALONE, b"", 1, "float32", PipelineSpec((StageSpec("raw"),)), parts)


def build(sizes: list[list[int]], seed: int = 0) -> tuple[bytearray, list[list[bytes]]]:
    """Return a blob of random bytes and the bytes."""
    draw = random.Random(seed)
    payload = [[draw.randbytes(size) for size in fields] for fields in sizes]
    return build_blob(manifest_of(sizes), payload), payload


@given(sizes=SIZES, seed=st.integers(0, 100))
def test_every_field_reads_back_as_it_was_written(sizes: list[list[int]], seed: int) -> None:
    """Lengths on both sides of the alignment."""
    blob, payload = build(sizes, seed)
    reader = BufferedBlob(blob, "memory")
    for index, (part, fields) in enumerate(zip(reader.manifest.parts, payload, strict=True)):
        assert list(map(bytes, part_fields(part, reader.part(index)).values())) == fields
    assert verify_blob(blob) == reader.header
    assert key_of(reader.manifest).content == CONTENT


@given(sizes=SIZES)
def test_parts_and_fields_begin_at_multiples_of_64_and_the_blob_ends_with_the_last(sizes: list[list[int]]) -> None:
    """A reader may map a blob and use it in place."""
    blob, _ = build(sizes)
    parts = verify_blob(blob).manifest.parts
    assert all(part.offset % 64 == 0 and all(f.offset % 64 == 0 for f in part.fields) for part in parts)
    assert parts[-1].offset + parts[-1].nbytes == len(blob)


@settings(max_examples=300)
@given(sizes=SIZES, data=st.data())
def test_no_flipped_bit_is_overlooked(sizes: list[list[int]], data: st.DataObject) -> None:
    """In header, manifest, padding and parts."""
    blob, _ = build(sizes)
    at = data.draw(st.integers(0, 8 * len(blob) - 1))
    blob[at // 8] ^= 1 << at % 8
    with pytest.raises((CorruptError, FormatError)):
        verify_blob(blob)


@given(sizes=SIZES, data=st.data())
def test_a_cut_or_extended_blob_is_refused(sizes: list[list[int]], data: st.DataObject) -> None:
    """At any length."""
    blob, _ = build(sizes)
    n_bytes = data.draw(st.integers(0, len(blob) - 1))
    for wrong in (blob[:n_bytes], blob + b"\0"):
        with pytest.raises(KVError):
            verify_blob(wrong)
        with pytest.raises(KVError):
            BufferedBlob(wrong, "").part(len(sizes) - 1)


@given(data=st.binary(max_size=300))
def test_any_bytes_are_refused_by_an_error_of_ours(data: bytes) -> None:
    """Blobs come from disks and networks."""
    for bytes_ in (data, b"KVLARDER" + data, b"KVLARDER\x01\0\0\0" + data):
        with pytest.raises(KVError):
            verify_blob(bytes_)


def test_building_is_deterministic_and_ignores_the_places_that_a_manifest_claims() -> None:
    """Encoding a passage twice gives the same chunk."""
    blob, payload = build([[5, 70], [64]])
    placed = verify_blob(blob).manifest
    moved = replace(placed, parts=tuple(replace(part, offset=7, nbytes=3, xxh3="00" * 16) for part in placed.parts))
    assert build_blob(moved, payload) == blob


@pytest.mark.parametrize("n_bytes", [MAX_MANIFEST_NBYTES + 1, 2**32 - 1])
def test_a_huge_manifest_is_refused_before_it_is_read(n_bytes: int) -> None:
    """From the first 48 bytes alone."""
    head = struct.pack("<8sIIQQ", b"KVLARDER", 1, n_bytes, 2**40, 0) + bytes(16)
    with pytest.raises(FormatError, match=f"manifest of {n_bytes} B"):
        header_nbytes(head)


@pytest.mark.parametrize(
    "fields",
    [
        (b"KVLARDEX", 1, 2, 99, 0),
        (b"KVLARDER", 0, 2, 99, 0),
        (b"KVLARDER", 2, 2, 99, 0),
        (b"KVLARDER", 1, 2, 49, 0),
        (b"KVLARDER", 1, 2, 99, 1),
    ],
)
def test_an_impossible_header_is_refused(fields: tuple[bytes, int, int, int, int]) -> None:
    """Magic, version, lengths and the zero."""
    with pytest.raises(FormatError):
        header_nbytes(struct.pack("<8sIIQQ", *fields) + bytes(16))


def sealed(text: bytes, nbytes: int) -> bytes:
    """Return a header with a right digest over any manifest."""
    head = struct.pack("<8sIIQQ", b"KVLARDER", 1, len(text), nbytes, 0)
    return head + xxh3(head, text) + text


@pytest.mark.parametrize("change", [64, -64, 1])
def test_parts_that_do_not_lie_where_they_must_are_refused(change: int) -> None:
    """A digest only says that nobody changed the lie."""
    header = verify_blob(build([[10], [20]])[0])
    parts = (header.manifest.parts[0], replace(header.manifest.parts[1], offset=header.manifest.parts[1].offset + change))
    text = canonical.dumps(replace(header.manifest, parts=parts).to_json())
    with pytest.raises(FormatError, match="begins at"):
        parse_header(sealed(text, header.nbytes))


@pytest.mark.parametrize("change", [-1, 1, 2**40])
def test_a_length_that_does_not_fit_the_parts_is_refused(change: int) -> None:
    """So that nobody allocates what a header claims."""
    header: Header = verify_blob(build([[10]])[0])
    text = canonical.dumps(header.manifest.to_json())
    with pytest.raises(FormatError, match="the parts end at"):
        parse_header(sealed(text, header.nbytes + change))


def test_a_closed_reader_hands_out_nothing_and_keeps_what_it_handed_out() -> None:
    """Views live as long as their holders."""
    blob, payload = build([[10], [20]])
    with BufferedBlob(bytes(blob), "") as reader:
        part = reader.part(1)
    assert bytes(part) == payload[1][0]
    with pytest.raises(FormatError, match="closed"):
        reader.part(0)


@given(data=st.binary(max_size=100), size=st.integers(1, 40))
def test_pieces_join_to_the_buffer(data: bytes, size: int) -> None:
    """None is empty, none too long."""
    pieces = list(iter_pieces(data, size))
    assert b"".join(pieces) == data
    assert all(0 < len(piece) <= size for piece in pieces)


@given(offset=st.integers(0, 2**48))
def test_aligning_goes_up_by_less_than_64(offset: int) -> None:
    """And never down."""
    assert offset <= align(offset) < offset + 64
    assert align(offset) % 64 == 0


def test_the_header_is_as_long_as_documented() -> None:
    """Readers in other languages count on it."""
    assert HEADER_NBYTES == 48
