"""Building codecs, encoding what fits the model only, and decoding without a copy."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kvstore.codecs import Stage
from kvstore.codecs.zstd import Zstd
from kvstore.core.blob import Buffer, key_of, parse_header, verify_blob
from kvstore.core.errors import IdentityError, InvalidInputError, UnsupportedError
from kvstore.core.identity import ModelIdentity
from kvstore.core.key import ChunkKey, Kind
from kvstore.core.manifest import Manifest
from kvstore.core.stages import PipelineSpec, StageSpec
from kvworker.chunk import KVChunk, PassageKV
from kvworker.codec.decode import check_geometry, decode_part
from kvworker.codec.pipeline import Pipeline
from kvworker.codec.registry import declared_quality, pipeline_of
from kvworker.codec.specs import PRESETS, find_codec
from kvworker.methods.quantize.int8 import Int8
from kvworker.methods.quantize.kivi import Kivi
from kvworker.methods.quantize.raw import Raw

Encode = Callable[[str], bytearray]


def first_part(blob: bytearray) -> tuple[Manifest, bytearray]:
    """Return the manifest and the bytes of part 0."""
    manifest = parse_header(blob).manifest
    return manifest, blob[manifest.parts[0].offset : manifest.parts[0].offset + manifest.parts[0].nbytes]


@pytest.mark.parametrize("stages", [(), (Zstd(),), (Zstd(), Raw()), (Raw(), Int8()), (Raw(), Zstd(), Int8())])
def test_another_order_than_quantizer_then_byte_stages_is_refused(stages: tuple[Stage, ...]) -> None:
    with pytest.raises(InvalidInputError, match="transforms, one quantizer, then byte stages"):
        Pipeline(stages)


@pytest.mark.parametrize("params", [{"bits": 5}, {"group": 7}, {"group": 0}, {"bits": 4.0}, {"bits": True}, {"bits": "4"}])
def test_a_parameter_out_of_range_or_of_another_type_is_refused(params: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError, match="kivi"):
        Kivi(**params)


@pytest.mark.parametrize("level", [0, 20, -1])
def test_a_zstd_level_out_of_range_is_refused(level: int) -> None:
    with pytest.raises(InvalidInputError, match="level must be within 1 and 19"):
        Zstd(level=level)


def test_a_spec_names_stages_and_parameters() -> None:
    assert find_codec("kivi:bits=2,group=64+zstd:level=3,fields=codes") == Pipeline((Kivi(2, 64), Zstd("codes", 3)))


def test_parameters_left_out_of_a_spec_have_their_defaults() -> None:
    assert find_codec("kivi") == find_codec("kivi4")


@pytest.mark.parametrize("text", ["", "gzip", "int9", "raw+", "..", "__init__", "os", "kivi:size=3"])
def test_an_unknown_codec_is_refused_with_the_known_ones_listed(text: str) -> None:
    listed = r"presets raw, lossless, .*; quantizers .*exponent_split, .*raw.*; transforms .*sinks.*; byte stages deflate, "
    with pytest.raises(InvalidInputError, match=listed):
        find_codec(text)


@pytest.mark.parametrize("text", ["kivi:4", "kivi:=4", "kivi:bits=four", "kivi:bits=5", "zstd", "raw+raw"])
def test_a_malformed_spec_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        find_codec(text)


@pytest.mark.parametrize("preset", PRESETS)
def test_only_codecs_that_restore_every_bit_are_declared_lossless(preset: str) -> None:
    assert declared_quality(find_codec(preset).spec) == ("lossless" if preset in ("raw", "lossless") else "unmeasured")


@pytest.mark.parametrize(
    "codec",
    [
        PipelineSpec(()),
        PipelineSpec((StageSpec("gzip"),)),
        PipelineSpec((StageSpec("../raw"),)),
        PipelineSpec((StageSpec("kivi", (("bits", 4),)),)),  # a default left out: it could change some day
        PipelineSpec((StageSpec("kivi", (("bits", 4.0), ("group", 32))),)),
        PipelineSpec((StageSpec("kivi", (("bits", 5), ("group", 32))),)),
        PipelineSpec((StageSpec("raw", (("level", 1),)),)),
        PipelineSpec((StageSpec("raw"), StageSpec("raw"))),
        PipelineSpec((StageSpec("raw"),), artifact="ab" * 32),
    ],
    ids=str,
)
def test_a_codec_of_a_manifest_that_is_not_ours_to_the_letter_is_unsupported(codec: PipelineSpec) -> None:
    with pytest.raises(UnsupportedError):
        pipeline_of(codec)


def test_a_parameter_of_equal_value_and_other_type_is_refused_after_the_right_one_was_taken() -> None:
    """4 == 4.0 and their hashes are equal: a cache could take one for the other."""
    pipeline_of(find_codec("kivi4").spec)
    with pytest.raises(UnsupportedError):
        pipeline_of(PipelineSpec((StageSpec("kivi", (("bits", 4.0), ("group", 32))),)))


def test_a_blob_has_the_key_that_it_was_encoded_for(identity: ModelIdentity, passage: PassageKV) -> None:
    codec = find_codec("int8")
    blob = codec.encode(passage, identity, Kind.DOCUMENT, b"\1" * 32, b"\2" * 32)
    manifest = verify_blob(blob).manifest
    assert key_of(manifest) == ChunkKey(identity.namespace, b"\1" * 32, codec.spec.variant())
    assert (manifest.kind, manifest.parent) == (Kind.DOCUMENT, b"\2" * 32)


def test_a_passage_of_another_dtype_is_refused(identity: ModelIdentity, passage: PassageKV) -> None:
    other = tuple(KVChunk(chunk.k.half(), chunk.v.half()) for chunk in passage)
    with pytest.raises(InvalidInputError, match="the model's layout is"):
        find_codec("raw").encode(other, identity, Kind.ALONE, bytes(32))


def test_a_passage_with_a_group_missing_is_refused(identity: ModelIdentity, passage: PassageKV) -> None:
    with pytest.raises(InvalidInputError, match="the model's layout is"):
        find_codec("raw").encode(passage[:1], identity, Kind.ALONE, bytes(32))


def test_groups_of_different_lengths_are_refused(identity: ModelIdentity, passage: PassageKV) -> None:
    ragged = (passage[0], KVChunk(passage[1].k[:, :, :5], passage[1].v[:, :, :5]))
    with pytest.raises(InvalidInputError, match="the model's layout is"):
        find_codec("raw").encode(ragged, identity, Kind.ALONE, bytes(32))


def test_the_geometry_of_the_own_model_is_accepted(identity: ModelIdentity, encode: Encode) -> None:
    check_geometry(parse_header(encode("raw")).manifest, identity, 9)


@pytest.mark.parametrize("changes", [{"n_tokens": 10}, {"namespace": b"\1" * 32}, {"dtype": "float16"}, {"parts": ()}])
def test_another_geometry_is_an_identity_error(identity: ModelIdentity, encode: Encode, changes: dict[str, Any]) -> None:
    """Whoever wrote the chunk may have claimed more tokens than were asked for."""
    manifest = replace(parse_header(encode("raw")).manifest, **changes)
    with pytest.raises(IdentityError, match="9 tokens of bfloat16"):
        check_geometry(manifest, identity, 9)


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_a_raw_part_decodes_without_a_copy(encode: Encode, wrap: Callable[[bytearray], Buffer]) -> None:
    """Read-only bytes too, and without torch's warning about them, which would fail this run."""
    manifest, data = first_part(encode("raw"))
    part = wrap(data)
    chunk = decode_part(manifest, 0, part)
    start = np.frombuffer(part, np.uint8).ctypes.data
    assert [chunk.k.data_ptr() - start, chunk.v.data_ptr() - start] == [field.offset for field in manifest.parts[0].fields]


class Block(np.ndarray[tuple[int], np.dtype[np.uint8]]):
    """Memory that a tier hands out views of and watches through a weak reference."""


def test_a_raw_chunk_holds_its_read_only_bytes_until_it_is_gone(encode: Encode) -> None:
    """A memory tier reuses a block once nobody has a view of it: too early is a wrong answer, never is a leak."""
    manifest, data = first_part(encode("raw"))
    block = np.frombuffer(data, np.uint8).view(Block)
    watch = weakref.ref(block)
    chunk = decode_part(manifest, 0, memoryview(block).toreadonly())
    some_rows = chunk.k[:, :, 1:]
    del block, chunk
    gc.collect()
    assert watch() is not None
    del some_rows
    gc.collect()
    assert watch() is None


@pytest.mark.parametrize("index", [-1, 2])
def test_a_part_that_is_not_there_is_an_error(encode: Encode, index: int) -> None:
    with pytest.raises(InvalidInputError, match="the chunk has parts 0 to 1"):
        decode_part(parse_header(encode("raw")).manifest, index, b"")
