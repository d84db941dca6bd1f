"""Manifests that verify but lie: whoever can store a chunk can also make its digests match."""

from __future__ import annotations

import copy
import random
import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from kvclient.reader import chunk
from kvstore.core.blob import parse_header
from kvstore.core.errors import FormatError, KVError
from kvstore.core.manifest import FieldSpec, Manifest
from kvworker.codec import decode

NUMBERS = (-1, 0, 1, 2, 3, 2**31, 2**33, 2**47, 2**63, 1.5)
VALUES = (*NUMBERS, None, True, "", "raw", "zstd", "float16", "int64", "kivi", "..", [], {}, [0], [2**40] * 3)
Encode = Callable[[str], bytearray]
Decoder = Callable[[Manifest, int, bytes], Any]
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
    n_tokens = 1 << 24

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
