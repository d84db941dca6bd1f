"""Chains of transforms, codecs that mix layers, and what both leave in the parts of a chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from kvstore.core.blob import BufferedBlob, parse_header
from kvstore.core.errors import FormatError, InvalidInputError, UnsupportedError
from kvstore.core.stages import Traits
from kvworker.chunk import ChunkSpec, KVChunk
from kvworker.codec import registry
from kvworker.codec.decode import ChunkDecoder, decode_chunk, decode_part
from kvworker.codec.pipeline import Pipeline, expected_specs
from kvworker.codec.specs import find_codec
from kvworker.codec.stages import Crossing, Fields, Layout, Transform
from kvworker.methods.quantize.int8 import Int8
from kvworker.methods.quantize.raw import Raw
from kvworker.methods.transform.sinks import Sinks
from tests.contracts.codecs import bits_of, decode, encode, identity_for, make_passage, parts_of


@dataclass(frozen=True)
class Side(Crossing):
    """Lay the layers and heads of groups with equal head sizes side by side as channels: a toy that mixes layers."""

    name: ClassVar[str] = "side"
    traits: ClassVar[Traits] = Traits(is_bit_exact=True)

    def inner(self, specs: Sequence[ChunkSpec]) -> ChunkSpec:
        n_rows = sum(spec.n_layers * spec.kv_heads for spec in specs)
        layers = tuple(layer for spec in specs for layer in spec.layers)
        first = specs[0]
        return ChunkSpec(1, 1, first.n_tokens, n_rows * first.k_dim, n_rows * first.v_dim, first.dtype, layers)

    def layout(self, specs: Sequence[ChunkSpec]) -> Layout:
        return {"side.n": ("int32", (1,))}

    def apply(self, chunks: Sequence[KVChunk], specs: Sequence[ChunkSpec]) -> tuple[KVChunk, Fields]:
        k, v = (torch.cat([x.flatten(0, 1) for x in sides]) for sides in ([c.k for c in chunks], [c.v for c in chunks]))
        wide = (x.transpose(0, 1).reshape(1, 1, x.shape[1], -1) for x in (k, v))
        return KVChunk(*wide), {"side.n": torch.tensor([len(chunks)], dtype=torch.int32)}

    def restore(self, chunk: KVChunk, fields: Fields, specs: Sequence[ChunkSpec]) -> list[KVChunk]:
        sizes = [spec.n_layers * spec.kv_heads for spec in specs]
        k, v = (x[0, 0].view(x.shape[2], sum(sizes), -1).transpose(0, 1).split(sizes) for x in (chunk.k, chunk.v))
        rows = [(spec.n_layers, spec.kv_heads) for spec in specs]
        return [KVChunk(a.unflatten(0, shape), b.unflatten(0, shape)) for a, b, shape in zip(k, v, rows, strict=True)]


@dataclass(frozen=True)
class Halves(Transform):
    """Keep the upper half of the channels of K beside the chunk: a toy whose inner chunk has another geometry."""

    name: ClassVar[str] = "halves"
    traits: ClassVar[Traits] = Traits(is_bit_exact=True, is_token_granular=True)

    def inner(self, spec: ChunkSpec) -> ChunkSpec:
        return replace(spec, k_dim=spec.k_dim // 2)

    def layout(self, spec: ChunkSpec) -> Layout:
        return {"halves.k": (spec.dtype, (spec.n_layers, spec.kv_heads, spec.n_tokens, spec.k_dim - spec.k_dim // 2))}

    def apply(self, chunk: KVChunk, spec: ChunkSpec) -> tuple[KVChunk, Fields]:
        return KVChunk(chunk.k[..., : spec.k_dim // 2], chunk.v), {"halves.k": chunk.k[..., spec.k_dim // 2 :]}

    def restore(self, chunk: KVChunk, fields: Fields, spec: ChunkSpec) -> KVChunk:
        return KVChunk(torch.cat((chunk.k, fields["halves.k"]), -1), chunk.v)


MODEL = identity_for((2, 2, 16, 24), (1, 3, 16, 24))


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let manifests name the toys."""
    real = registry.find_stage_class
    monkeypatch.setattr(registry, "find_stage_class", lambda name: {"side": Side, "halves": Halves}.get(name) or real(name))
    registry._pipeline_of.cache_clear()
    yield
    registry._pipeline_of.cache_clear()


@pytest.mark.parametrize("stages", [(Raw(), Sinks()), (Sinks(), Sinks(2), Raw()), (Sinks(),), (Side(), Sinks(), Side(), Raw())])
def test_another_order_or_a_transform_twice_is_refused(stages: tuple[Transform, ...]) -> None:
    with pytest.raises(InvalidInputError, match="a codec "):
        Pipeline(stages)


@pytest.mark.parametrize(
    "stages", [(Sinks(), Halves(), Raw()), (Halves(), Sinks(2), Raw()), (Sinks(), Side(), Raw()), (Side(), Sinks(), Raw())]
)
@pytest.mark.parametrize("n_tokens", [1, 4, 5, 9])
def test_exact_stages_in_any_order_restore_every_bit(stages: tuple[Transform, ...], n_tokens: int) -> None:
    codec, passage = Pipeline(stages), make_passage(MODEL, n_tokens)
    assert bits_of(decode(codec, encode(codec, MODEL, passage))) == bits_of(passage)


def test_a_transform_behind_another_sees_the_inner_geometry() -> None:
    codec = Pipeline((Halves(), Sinks(2), Raw()))
    layout = codec.layout(expected_specs(MODEL, 9), 1)
    assert {name: shape[2:] for name, (_, shape) in layout.items()} == {
        "halves.k": (9, 8),
        "sinks.k": (2, 8),
        "sinks.v": (2, 24),
        "k.values": (7, 8),
        "v.values": (7, 24),
    }


def test_what_mixes_layers_lies_in_the_first_part_and_what_stands_before_it_in_its_own() -> None:
    codec = Pipeline((Sinks(), Side(), Int8()))
    manifest = parse_header(encode(codec, MODEL, make_passage(MODEL, 9))).manifest
    assert [[field.name for field in part.fields] for part in manifest.parts] == [
        ["sinks.k", "sinks.v", "side.n", "k.codes", "k.scale", "v.codes", "v.scale"],
        ["sinks.k", "sinks.v"],
    ]


def test_a_part_without_fields_is_stored_and_read() -> None:
    codec = Pipeline((Side(), Raw()))
    passage = make_passage(MODEL, 9)
    reader = BufferedBlob(encode(codec, MODEL, passage), "")
    assert reader.manifest.parts[1].nbytes == 0
    assert bits_of(decode_chunk(reader.manifest, [reader.part(0), reader.part(1)])) == bits_of(passage)


def test_a_codec_that_mixes_layers_decodes_no_later_part_first() -> None:
    codec = Pipeline((Side(), Raw()))
    blob = encode(codec, MODEL, make_passage(MODEL, 9))
    with pytest.raises(InvalidInputError, match="part 1 was given before part 0"):
        decode_part(parse_header(blob).manifest, 1, parts_of(blob)[1])


def test_a_codec_has_the_traits_that_all_its_stages_have() -> None:
    assert find_codec("sinks+int8").traits == Traits(is_token_granular=True)
    assert find_codec("sinks+exponent_split+zstd").traits == Traits(is_bit_exact=True)
    assert Pipeline((Side(), Raw())).traits == Traits(is_bit_exact=True, is_layer_streamable=False)
    assert find_codec("sinks+skvq").traits == Traits(is_tp_splittable=False, is_token_granular=True, needs_artifact=True)


def test_an_eight_bit_codec_with_sinks_counts_them_in_full() -> None:
    """16 tokens of float32 heads of 16: 4 raw at 32 bits, 12 at 8 + 32 / 16."""
    specs = expected_specs(identity_for((1, 1, 16, 16)), 16)
    assert find_codec("sinks+int8").bits_per_value(specs) == (4 * 32 + 12 * 10) / 16


def test_a_decoder_refuses_a_chunk_of_another_codec() -> None:
    blob = encode(find_codec("raw"), MODEL, make_passage(MODEL, 3))
    with pytest.raises(UnsupportedError, match="not as"):
        ChunkDecoder(parse_header(blob).manifest, find_codec("int8"))


@pytest.mark.parametrize("n", [0, -1, 1025])
def test_a_number_of_sinks_out_of_range_is_refused(n: int) -> None:
    with pytest.raises(InvalidInputError, match="n must be within 1 and 1024"):
        Sinks(n)


def test_a_first_part_that_lacks_the_crossed_fields_is_refused() -> None:
    codec = Pipeline((Sinks(), Side(), Raw()))
    blob = encode(codec, MODEL, make_passage(MODEL, 9))
    manifest = parse_header(blob).manifest
    second = replace(manifest.parts[1], group=0)
    lying = replace(manifest, parts=(second, manifest.parts[1]))
    with pytest.raises(FormatError, match="part 0 has fields"):
        decode_part(lying, 0, parts_of(blob)[1])
