"""Manifests that verify but lie: whoever can store a chunk can also make its digests match."""

from __future__ import annotations

import copy
import random
import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from kvclient.reader import chunk
from kvstore.core.blob import parse_header
from kvstore.core.errors import CapacityError, FormatError, KVError
from kvstore.core.identity import KVLayout, LayerGroup, ModelIdentity
from kvstore.core.key import Kind
from kvstore.core.manifest import FieldSpec, Manifest
from kvworker.chunk import KVChunk, PassageKV
from kvworker.codec import decode
from kvworker.codec.specs import find_codec

NUMBERS = (-1, 0, 1, 2, 3, 2**31, 2**33, 2**47, 2**63, 1.5)
VALUES = (*NUMBERS, None, True, "", "raw", "zstd", "float16", "int64", "kivi", "..", [], {}, [0], [2**40] * 3)
Encode = Callable[[str], bytearray]
Decoder = Callable[[Manifest, int, bytes], Any]
Maker = Callable[..., Any]
makers = pytest.mark.parametrize("make", [decode.ChunkDecoder, chunk.ChunkReader], ids=["torch", "numpy"])
decoders = pytest.mark.parametrize("decode_part", [decode.decode_part, chunk.decode_part], ids=["torch", "numpy"])


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every (container, key) of a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from places(inner)


def peak_rss_kib() -> int:
    """Return the most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@decoders
@pytest.mark.parametrize("codec", ["raw", "lossless", "int8", "kivi4"])
def test_a_changed_manifest_decodes_or_raises_a_typed_error_in_little_memory(encode: Encode, codec: str, decode_part: Decoder) -> None:
    """1,500 manifests with one or two seeded changes each."""
    blob = encode(codec)
    good, rng, before = parse_header(blob).manifest.to_json(), random.Random(0), peak_rss_kib()
    outcomes = {"refused": 0, "decoded": 0}
    for _ in range(1500):
        changed = copy.deepcopy(good)
        for _ in range(rng.choice((1, 2))):
            container, key = rng.choice(list(places(changed)))
            container[key] = rng.choice(VALUES)
        outcomes[outcome(changed, blob, decode_part)] += 1
    assert peak_rss_kib() - before < 64 << 10
    assert min(outcomes.values()) > 0, outcomes


def outcome(changed: Any, blob: bytearray, decode_part: Decoder) -> str:
    """Read a manifest and decode its parts; anything but a KVError escapes."""
    try:
        manifest = Manifest.from_json(changed)
        for part in manifest.parts:
            decode_part(manifest, part.group, bytes(blob[part.offset : part.offset + part.nbytes]))
    except KVError:
        return "refused"
    return "decoded"


def claim(manifest: Manifest, n_tokens: int, fields: Callable[[FieldSpec], FieldSpec]) -> Manifest:
    """Return the manifest with another T and with fields changed in part 0."""
    part = manifest.parts[0]
    return replace(manifest, n_tokens=n_tokens, parts=(replace(part, fields=tuple(map(fields, part.fields))), *manifest.parts[1:]))


@decoders
def test_a_huge_shape_over_a_small_frame_is_refused(encode: Encode, decode_part: Decoder) -> None:
    """The shape agrees with the geometry, the frame does not: nothing of that size may be allocated to find out."""
    blob = encode("lossless")
    n_tokens = 1 << 21

    def grow(field: FieldSpec) -> FieldSpec:
        return replace(field, shape=tuple(n_tokens if size == 9 else size for size in field.shape))

    manifest = claim(parse_header(blob).manifest, n_tokens, grow)
    part = manifest.parts[0]
    before = peak_rss_kib()
    with pytest.raises(FormatError):
        decode_part(manifest, 0, bytes(blob[part.offset : part.offset + part.nbytes]))
    assert peak_rss_kib() - before < 64 << 10


@decoders
def test_a_packing_that_the_codec_does_not_do_is_refused(encode: Encode, decode_part: Decoder) -> None:
    blob = encode("int8")
    manifest = claim(parse_header(blob).manifest, 9, lambda field: replace(field, packing="zstd"))
    part = manifest.parts[0]
    with pytest.raises(FormatError, match="which the codec"):
        decode_part(manifest, 0, bytes(blob[part.offset : part.offset + part.nbytes]))


@decoders
def test_fields_in_another_order_or_one_too_many_are_refused(encode: Encode, decode_part: Decoder) -> None:
    blob = encode("raw")
    manifest = parse_header(blob).manifest
    part = manifest.parts[0]
    extra = FieldSpec("spare", "uint8", (0,), offset=part.nbytes)
    more = replace(manifest, parts=(replace(part, fields=(*part.fields, extra)), *manifest.parts[1:]))
    with pytest.raises(FormatError, match="spare"):
        decode_part(more, 0, bytes(blob[part.offset : part.offset + part.nbytes]))


@decoders
def test_a_chunk_of_zero_tokens_is_refused(encode: Encode, decode_part: Decoder) -> None:
    blob = encode("raw")
    manifest = claim(parse_header(blob).manifest, 0, lambda field: replace(field, shape=(0,), nbytes=0))
    part = manifest.parts[0]
    with pytest.raises(FormatError, match="dimension of 0"):
        decode_part(manifest, 0, bytes(blob[part.offset : part.offset + part.nbytes]))


@decoders
@pytest.mark.parametrize("length", [0, 1, -1])
def test_a_part_shorter_than_its_manifest_says_is_refused(encode: Encode, decode_part: Decoder, length: int) -> None:
    blob = encode("raw")
    manifest = parse_header(blob).manifest
    part = manifest.parts[0]
    with pytest.raises(FormatError, match=f"has {part.nbytes} B, got"):
        decode_part(manifest, 0, bytes(blob[part.offset : part.offset + part.nbytes])[:length])


def longer(manifest: Manifest, n_tokens: int) -> Manifest:
    """Return the manifest of nine tokens with fields of so many, which are packed."""

    def grow(field: FieldSpec) -> FieldSpec:
        return replace(field, shape=tuple(n_tokens if size == 9 else size for size in field.shape))

    parts = tuple(replace(part, fields=tuple(map(grow, part.fields))) for part in manifest.parts)
    return Manifest.from_json(replace(manifest, n_tokens=n_tokens, parts=parts).to_json())


@makers
@pytest.mark.parametrize("codec", ["raw+trim", "raw+zstd", "raw+deflate", "raw+lz4"])
def test_a_few_packed_bytes_that_claim_gigabytes_are_refused(identity: ModelIdentity, passage: PassageKV, codec: str, make: Maker) -> None:
    """Geometry and fields agree with each other, and 6 GiB is within what a field may have; nobody asked for it."""
    zeros = tuple(KVChunk(torch.zeros_like(part.k), torch.zeros_like(part.v)) for part in passage)
    blob = find_codec(codec).encode(zeros, identity, Kind.ALONE, b"\7" * 32)
    manifest, before = longer(parse_header(blob).manifest, 3 << 24), peak_rss_kib()
    with pytest.raises(CapacityError, match=r"claims 17716740096 B of K and V.*raise max_decoded_nbytes"):
        make(manifest)
    assert len(blob) < 4096
    assert peak_rss_kib() - before < 1 << 10


@makers
def test_a_caller_says_how_much_is_decoded(encode: Encode, make: Maker) -> None:
    """All parts count together."""
    manifest = parse_header(encode("raw")).manifest
    assert manifest.decoded_nbytes == 9 * (2 * 2 * (16 + 24) + 8 + 8) * 2 == 3168
    make(manifest, max_decoded_nbytes=3168)
    with pytest.raises(CapacityError, match="at most 3167 B are decoded here"):
        make(manifest, max_decoded_nbytes=3167)


@makers
def test_packed_parameters_count_even_where_keys_and_values_are_small(make: Maker) -> None:
    """Heads of one channel: a scale of 4 B beside a code of 1 B, where a value takes 2 B."""
    narrow = ModelIdentity("m", "0" * 64, KVLayout((LayerGroup((0,), 4, 1, 1, None),)), "bfloat16", "1" * 64)
    same = torch.ones(1, 4, 64, 1).bfloat16()
    manifest = parse_header(find_codec("int8+zstd").encode((KVChunk(same, same),), narrow, Kind.ALONE, b"\7" * 32)).manifest
    assert {field.packing for field in manifest.parts[0].fields} == {"zstd"}
    make(manifest, max_decoded_nbytes=2560)
    with pytest.raises(CapacityError, match="2560 B in packed fields"):
        make(manifest, max_decoded_nbytes=2559)
