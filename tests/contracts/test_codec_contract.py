"""What every codec promises: determinism, exact size, an error bound, parts that stand alone, and a second decoder that agrees."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvclient.numpy_codecs import decode_part as numpy_decode_part
from kvstore.core.blob import parse_header, verify_blob
from kvstore.core.errors import InvalidInputError
from kvstore.core.identity import KVLayout, LayerGroup, ModelIdentity
from kvstore.core.key import Kind
from kvstore.core.manifest import ITEM_NBYTES
from kvworker.chunk import DTYPES, ChunkSpec, KVChunk, PassageKV
from kvworker.codec.pipeline import Pipeline, declared_quality, decode_part, pipeline_of
from kvworker.codec.specs import PRESETS, find_codec

CODECS = (*PRESETS, "exponent_split", "int8+zstd", "kivi:bits=2,group=8+zstd:fields=codes,level=3")
GROUP = 32
BOUNDARIES = (1, GROUP - 1, GROUP, GROUP + 1, 2 * GROUP)
UNIT_ROUNDOFF = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
"""Half the distance of 1.0 to the next value of the type."""

each_codec = pytest.mark.parametrize("codec", CODECS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def identity_for(*shapes: tuple[int, int, int, int], dtype: str = "float32") -> ModelIdentity:
    """Return a model with groups of (layers, heads, k_dim, v_dim)."""
    groups, first = [], 0
    for n_layers, kv_heads, k_dim, v_dim in shapes:
        groups.append(LayerGroup(tuple(range(first, first + n_layers)), kv_heads, k_dim, v_dim, None))
        first += n_layers
    return ModelIdentity("m", "0" * 64, KVLayout(tuple(groups)), dtype, "1" * 64)


def make_passage(identity: ModelIdentity, n_tokens: int, seed: int = 0) -> PassageKV:
    """Return normal values with one large key channel and one constant one, as real keys have."""
    rng = torch.Generator().manual_seed(seed)
    chunks = []
    for group in identity.layout.groups:
        rows = (len(group.layers), group.kv_heads, n_tokens)
        k, v = (torch.randn(*rows, dim, generator=rng) for dim in (group.k_dim, group.v_dim))
        k[..., 0] *= 30
        k[..., -1] = 0.25
        chunks.append(KVChunk(k.to(DTYPES[identity.dtype]), v.to(DTYPES[identity.dtype])))
    return tuple(chunks)


def encode(codec: Pipeline, identity: ModelIdentity, passage: PassageKV) -> bytearray:
    """Return the blob of a passage under some content key."""
    return codec.encode(passage, identity, Kind.ALONE, b"\7" * 32)


def parts_of(blob: bytearray) -> list[memoryview]:
    """Return the bytes of every part."""
    return [memoryview(blob)[p.offset : p.offset + p.nbytes] for p in verify_blob(blob).manifest.parts]


def decode(blob: bytearray) -> PassageKV:
    """Return every part of a blob, decoded."""
    manifest = parse_header(blob).manifest
    return tuple(decode_part(manifest, n, data) for n, data in enumerate(parts_of(blob)))


def bits_of(passage: PassageKV) -> list[bytes]:
    """Return the bytes of every tensor."""
    return [x.contiguous().view(torch.uint8).numpy().tobytes() for chunk in passage for x in (chunk.k, chunk.v)]


@each_dtype
@each_codec
def test_encoding_twice_makes_equal_bytes(codec: str, dtype: str) -> None:
    identity = identity_for((2, 2, 16, 24), dtype=dtype)
    first, second = (encode(find_codec(codec), identity, make_passage(identity, 33)) for _ in range(2))
    assert first == second


@each_dtype
@each_codec
def test_decoding_twice_makes_equal_values(codec: str, dtype: str) -> None:
    identity = identity_for((2, 2, 16, 24), dtype=dtype)
    blob = encode(find_codec(codec), identity, make_passage(identity, 33))
    assert bits_of(decode(blob)) == bits_of(decode(blob))


@each_dtype
@each_codec
def test_decoded_tensors_have_the_shape_and_type_of_the_model(codec: str, dtype: str) -> None:
    identity = identity_for((2, 2, 16, 24), (1, 1, 8, 8), dtype=dtype)
    passage = make_passage(identity, 33)
    assert [chunk.spec for chunk in decode(encode(find_codec(codec), identity, passage))] == [chunk.spec for chunk in passage]


@each_codec
def test_encoding_changes_no_input(codec: str) -> None:
    identity = identity_for((2, 2, 16, 24))
    passage = make_passage(identity, 33)
    before = bits_of(passage)
    encode(find_codec(codec), identity, passage)
    assert bits_of(passage) == before


@each_codec
def test_a_part_decodes_without_the_other_parts(codec: str) -> None:
    """Streaming by layer group: part n is decoded when only header, manifest and its own bytes have arrived."""
    identity = identity_for((2, 2, 16, 24), (1, 1, 8, 8))
    blob = encode(find_codec(codec), identity, make_passage(identity, 9))
    alone = decode_part(parse_header(blob).manifest, 1, bytes(parts_of(blob)[1]))
    assert bits_of((alone,)) == bits_of(decode(blob)[1:])


@each_codec
def test_a_part_does_not_depend_on_the_other_parts(codec: str) -> None:
    identity = identity_for((2, 2, 16, 24), (1, 1, 8, 8))
    passage, other = (make_passage(identity, 9, seed) for seed in (0, 1))
    blobs = [encode(find_codec(codec), identity, (first[0], passage[1])) for first in (passage, other)]
    assert parts_of(blobs[0])[1] == parts_of(blobs[1])[1]


@each_codec
def test_a_layer_does_not_depend_on_the_layers_beside_it(codec: str) -> None:
    identity, single = identity_for((2, 2, 16, 24)), identity_for((1, 2, 16, 24))
    passage = make_passage(identity, 9)
    alone = tuple(KVChunk(chunk.k[1:], chunk.v[1:]) for chunk in passage)
    back = decode(encode(find_codec(codec), identity, passage))[0]
    assert bits_of(decode(encode(find_codec(codec), single, alone))) == bits_of((KVChunk(back.k[1:], back.v[1:]),))


@each_codec
def test_strided_tensors_are_stored_as_what_they_hold(codec: str) -> None:
    """An engine hands out slices of its cache, which are not contiguous."""
    identity = identity_for((1, 2, 16, 16))
    wide = make_passage(identity, 20)[0]
    sliced = KVChunk(wide.k[:, :, 3:12], wide.v[:, :, 3:12])
    copied = KVChunk(sliced.k.clone(), sliced.v.clone())
    assert encode(find_codec(codec), identity, (sliced,)) == encode(find_codec(codec), identity, (copied,))


@each_codec
def test_the_manifest_alone_rebuilds_the_codec(codec: str) -> None:
    identity = identity_for((1, 1, 8, 8))
    blob = encode(find_codec(codec), identity, make_passage(identity, 2))
    assert pipeline_of(parse_header(blob).manifest.codec) == find_codec(codec)


def test_every_codec_has_a_variant_of_its_own() -> None:
    assert len({find_codec(codec).spec.variant() for codec in CODECS}) == len(CODECS)


def fields_nbytes(codec: str, spec: ChunkSpec) -> list[int]:
    """Return the raw bytes of each field, from the formulas of the methods."""
    rows, item = spec.n_layers * spec.kv_heads, DTYPES[spec.dtype].itemsize
    sides = ((spec.n_tokens, spec.k_dim, spec.n_tokens, spec.k_dim), (spec.n_tokens, spec.v_dim, spec.v_dim, spec.n_tokens))
    sizes = []
    for n_tokens, dim, grouped, across in sides:
        n = rows * n_tokens * dim
        match codec:
            case "raw":
                sizes += [n * item]
            case "exponent_split":
                sizes += [n, n * (item - 1)]
            case "int8":
                sizes += [n, 4 * rows * n_tokens]
            case "kivi4" | "kivi2":
                bits = int(codec[-1])
                parameters = rows * -(-grouped // GROUP) * across * item
                sizes += [rows * -(-grouped * bits // 8) * across, parameters, parameters]
    return sizes


@each_dtype
@pytest.mark.parametrize("n_tokens", BOUNDARIES)
@pytest.mark.parametrize("codec", ["raw", "exponent_split", "int8", "kivi4", "kivi2"])
def test_a_part_has_the_size_of_the_formula(codec: str, n_tokens: int, dtype: str) -> None:
    """Fields are aligned to 64 bytes, the part ends with its last field."""
    identity = identity_for((2, 3, 40, 72), dtype=dtype)
    blob = encode(find_codec(codec), identity, make_passage(identity, n_tokens))
    end = 0
    for nbytes in fields_nbytes(codec, ChunkSpec(2, 3, n_tokens, 40, 72, dtype)):
        end = -(-end // 64) * 64 + nbytes
    assert parse_header(blob).manifest.parts[0].nbytes == end


@each_dtype
@each_codec
def test_a_field_takes_at_most_its_raw_bytes(codec: str, dtype: str) -> None:
    """Noise packs to more than it was; it has to stay raw."""
    identity = identity_for((2, 2, 16, 24), dtype=dtype)
    parts = parse_header(encode(find_codec(codec), identity, make_passage(identity, 9))).manifest.parts
    assert all(field.nbytes <= field.raw_nbytes for part in parts for field in part.fields)


Bound = Callable[[torch.Tensor, int], torch.Tensor]


def int8_bound(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Return max|x| / 254 over each token's vector."""
    return x.abs().amax(-1, keepdim=True) / 254


def kivi_bound(bits: int, group: int) -> Bound:
    """Return half of each group's step, from the unquantized values."""

    def bound(x: torch.Tensor, axis: int) -> torch.Tensor:
        steps = [
            ((part.amax(axis, keepdim=True) - part.amin(axis, keepdim=True)) / (2**bits - 1)).clamp(min=2.0**-19).expand_as(part)
            for part in x.split(group, axis)
        ]
        return torch.cat(steps, axis) / 2

    return bound


BOUNDS: dict[str, Bound] = {
    "int8": int8_bound,
    "int8+zstd": int8_bound,
    "kivi4": kivi_bound(4, GROUP),
    "kivi2": kivi_bound(2, GROUP),
    "kivi:bits=2,group=8+zstd:fields=codes,level=3": kivi_bound(2, 8),
}


def assert_within_bound(codec: str, before: torch.Tensor, after: torch.Tensor, axis: int, dtype: str) -> None:
    """Check one side. Slack: the cast to the model's type moves a value by its unit roundoff (and 2**-25, half the smallest float16);
    about six float32 roundings of values up to max|x| move it by 8 * 2**-24 * max|x|. KIVI's scale is rounded down, which
    may leave the topmost level up to 15 units of the scale's last place short."""
    x, y = before.double(), after.double()
    step = BOUNDS[codec](x, axis)
    short = 15 * 2 * UNIT_ROUNDOFF[dtype] * 2 * step if codec.startswith("kivi") else torch.zeros(())
    slack = UNIT_ROUNDOFF[dtype] * y.abs() + 2.0**-25 + 8 * 2.0**-24 * x.abs().max()
    assert ((x - y).abs() <= torch.maximum(step, short) + slack).all()


@st.composite
def cases(draw: st.DrawFn) -> tuple[ModelIdentity, PassageKV]:
    """Draw a passage: few tokens or a group boundary, odd dims, any dtype."""
    small = st.integers(1, 3)
    dims = st.sampled_from([1, 2, 3, 7, 8, 9, 31, 32, 33])
    shape = (draw(small), draw(small), draw(dims), draw(dims))
    identity = identity_for(shape, dtype=draw(st.sampled_from(sorted(DTYPES))))
    n_tokens = draw(st.one_of(st.integers(1, 10), st.sampled_from(BOUNDARIES)))
    return identity, make_passage(identity, n_tokens, seed=draw(st.integers(0, 1000)))


@each_codec
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(case=cases())
def test_what_comes_back_is_exact_or_within_the_stated_bound(codec: str, case: tuple[ModelIdentity, PassageKV]) -> None:
    identity, passage = case
    back = decode(encode(find_codec(codec), identity, passage))
    if declared_quality(find_codec(codec).spec) == "lossless":
        assert bits_of(back) == bits_of(passage)
        return
    assert_within_bound(codec, passage[0].k, back[0].k, -2, identity.dtype)
    assert_within_bound(codec, passage[0].v, back[0].v, -1, identity.dtype)


@each_codec
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(case=cases())
def test_numpy_and_torch_decode_equal_values(codec: str, case: tuple[ModelIdentity, PassageKV]) -> None:
    """Equal, not close: both round once per operation in float32 and once to the model's type."""
    identity, passage = case
    blob = encode(find_codec(codec), identity, passage)
    k, v = numpy_decode_part(parse_header(blob).manifest, 0, parts_of(blob)[0])
    back = decode(blob)[0]
    np.testing.assert_array_equal(k, back.k.float().numpy())
    np.testing.assert_array_equal(v, back.v.float().numpy())


@each_dtype
@pytest.mark.parametrize("codec", ["raw", "lossless", "exponent_split"])
def test_lossless_codecs_restore_every_bit_pattern(codec: str, dtype: str) -> None:
    """NaN payloads, infinities, -0 and subnormals are among random bits."""
    identity = identity_for((2, 2, 64, 64), dtype=dtype)
    rng = torch.Generator().manual_seed(0)
    word = torch.int32 if dtype == "float32" else torch.int16
    span = torch.iinfo(word)
    k, v = (torch.randint(span.min, span.max, (2, 2, 300, 64), generator=rng, dtype=word).view(DTYPES[dtype]) for _ in range(2))
    passage = (KVChunk(k, v),)
    assert bits_of(decode(encode(find_codec(codec), identity, passage))) == bits_of(passage)


@each_dtype
@pytest.mark.parametrize("codec", ["int8", "kivi4", "kivi2"])
def test_all_zero_values_decode_to_zero(codec: str, dtype: str) -> None:
    """A group without any range has no step to divide by."""
    identity = identity_for((1, 1, 8, 8), dtype=dtype)
    zeros = torch.zeros(1, 1, 5, 8, dtype=DTYPES[dtype])
    back = decode(encode(find_codec(codec), identity, (KVChunk(zeros, zeros.clone()),)))[0]
    assert torch.equal(back.k, zeros)
    assert torch.equal(back.v, zeros)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("codec", ["int8", "kivi4", "kivi2"])
def test_lossy_codecs_refuse_what_is_not_finite(codec: str, value: float) -> None:
    """One such value would spoil its whole group; the message names layer and count so that the writer can look."""
    identity = identity_for((2, 1, 8, 8), (2, 1, 8, 8))
    passage = make_passage(identity, 5)
    passage[1].v[1, 0, 2:4, 3] = value
    with pytest.raises(InvalidInputError, match="v of layer 3 holds 2 values that are NaN or beyond"):
        encode(find_codec(codec), identity, passage)


def alternating(largest: float, dtype: str) -> PassageKV:
    """Return tokens that are all `largest` and all minus it, in turn: the widest range of every kind of group."""
    k = torch.full((1, 1, 4, 8), largest, dtype=DTYPES[dtype])
    k[:, :, ::2] *= -1
    return (KVChunk(k, k.clone()),)


@each_dtype
@pytest.mark.parametrize("codec", ["int8", "kivi4", "kivi2"])
def test_the_largest_values_that_are_taken_come_back_finite(codec: str, dtype: str) -> None:
    """Differences of two values and rounded-up scales must not overflow."""
    largest = min(torch.finfo(DTYPES[dtype]).max, 2.0**126 * (1 - 2.0**-8))
    back = decode(encode(find_codec(codec), identity_for((1, 1, 8, 8), dtype=dtype), alternating(largest, dtype)))[0]
    assert torch.isfinite(back.k).all()
    assert torch.isfinite(back.v).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("codec", ["int8", "kivi4", "kivi2"])
def test_larger_values_are_refused(codec: str, dtype: str) -> None:
    with pytest.raises(InvalidInputError, match="holds 32 values"):
        encode(find_codec(codec), identity_for((1, 1, 8, 8), dtype=dtype), alternating(2.0**126, dtype))


@each_codec
def test_a_passage_of_no_tokens_is_refused(codec: str) -> None:
    identity = identity_for((1, 1, 8, 8))
    with pytest.raises(InvalidInputError, match="0 tokens"):
        encode(find_codec(codec), identity, make_passage(identity, 0))


def test_field_types_are_known_to_the_manifest() -> None:
    """A codec may only store types that a manifest can name."""
    spec = ChunkSpec(1, 1, 1, 8, 8, "bfloat16")
    types = {dtype for codec in CODECS for dtype, _ in find_codec(codec).quantizer.layout(spec).values()}
    assert types <= set(ITEM_NBYTES)
