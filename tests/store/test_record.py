"""The envelope around every stored chunk."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.core.blob import align, xxh3
from kvstore.core.errors import FormatError, IdentityError
from kvstore.store.reads import DAMAGE
from kvstore.store.record import HEAD_NBYTES, MAX_META_NBYTES, RecordMeta, meta_end, parse_head, parse_record
from tests.store.chunks import make_chunk, make_record, record_of


@settings(derandomize=True, max_examples=60)
@given(
    seed=st.integers(0, 1000),
    nbytes=st.sampled_from([0, 1, 63, 64, 65, 1000]),
    source=st.text(max_size=1024),
    recompute_s=st.floats(0, 1e300),
    epoch=st.integers(0, 2**63 - 1),
)
def test_a_record_reads_back_as_written(seed: int, nbytes: int, source: str, recompute_s: float, epoch: int) -> None:
    """Whatever a source is called and whatever its numbers are."""
    key, told, blob = make_chunk(seed, nbytes)
    meta = RecordMeta(told.chunk, told.kind, told.n_tokens, told.codec, source, epoch, recompute_s)
    data = record_of(key, meta, blob)
    head = parse_record(key, data)
    assert (head.storage_key, head.meta, data[head.blob_offset :], head.nbytes) == (key, meta, blob, len(data))
    assert parse_head(data).blob_offset == meta.blob_offset == align(meta.blob_offset)


def test_every_single_bit_flip_is_detected() -> None:
    """Exhaustive over one record: head, digest, meta, padding, blob head, manifest, padding, part."""
    key, record = make_record(1, 65)
    for bit in range(8 * len(record)):
        flipped = bytearray(record)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DAMAGE):
            parse_record(key, flipped)


def test_every_truncation_is_detected() -> None:
    """A file or a value may end anywhere, or go on behind its end."""
    key, record = make_record(2, 65)
    for length in [*range(len(record)), len(record) + 1, len(record) + 64]:
        with pytest.raises(DAMAGE):
            parse_record(key, record.ljust(length, b"\0")[:length])


def test_a_record_of_another_storage_key_is_refused() -> None:
    """A record that was copied to another name must not be served there: the storage key is what separates tenants."""
    _, record = make_record(3)
    with pytest.raises(IdentityError, match="belongs to storage key"):
        parse_record(bytes(32), record)


def test_a_meta_of_another_chunk_is_refused() -> None:
    """Each half may be intact and the pair still wrong."""
    key, meta, _ = make_chunk(4)
    _, _, other = make_chunk(5)
    with pytest.raises(IdentityError, match="tells of chunk"):
        parse_record(key, record_of(key, meta, other))


def test_hostile_lengths_are_refused_from_the_head_alone() -> None:
    """Nothing is allocated or read for a length that cannot be."""
    head = struct.pack("<8sIIQQ32s16s", b"KVRECORD", 1, MAX_META_NBYTES + 1, 1 << 62, 0, bytes(32), bytes(16))
    with pytest.raises(FormatError, match="impossible head"):
        meta_end(head)
    with pytest.raises(FormatError, match="impossible head"):
        meta_end(head[:12] + struct.pack("<IQ", 100, 100) + head[24:])


@pytest.mark.parametrize(
    "text",
    [b"[]", b"{}", b'{"chunk":1}', b"[" * 5000, b'{"chunk":"zz"}', b"\xff", b'{"a":1e999}', b'{"a":' + b"9" * 5000 + b"}"],
    ids=range(8),
)
def test_a_hostile_meta_with_a_right_digest_is_refused(text: bytes) -> None:
    """The digest is no secret: whoever writes to a tier can make one."""
    key, record = make_record(6)
    start = align(HEAD_NBYTES + len(text))
    blob = record[parse_head(record).blob_offset :]
    head = struct.pack("<8sIIQQ32s", b"KVRECORD", 1, len(text), start + len(blob), 0, key)
    with pytest.raises(DAMAGE):
        parse_record(key, (head + xxh3(head, text) + text).ljust(start, b"\0") + blob)


@settings(derandomize=True, max_examples=100)
@given(st.binary(max_size=300), st.integers(0, 2**32))
def test_random_bytes_are_refused_and_raise_nothing_else(data: bytes, seed: int) -> None:
    """A hostile record ends in one of the errors that count as damage, with a valid beginning too."""
    key, record = make_record(7)
    cut = random.Random(seed).randrange(len(record))
    for hostile in (data, record[:cut] + data):
        if hostile != record:
            with pytest.raises(DAMAGE):
                parse_record(key, hostile)


@pytest.mark.parametrize(
    ("field", "value"), [("source", "x" * 1025), ("recompute_s", float("nan")), ("recompute_s", -1.0), ("source_epoch", -1)]
)
def test_a_meta_refuses_what_it_could_not_store(field: str, value: object) -> None:
    """Refused when it is made, by the writer, not when it is read."""
    _, meta, _ = make_chunk(8)
    with pytest.raises(FormatError, match=field):
        RecordMeta(**{**vars(meta), field: value})
