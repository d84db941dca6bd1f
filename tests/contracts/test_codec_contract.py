"""What every codec promises: determinism, exact size, an error bound and parts that stand alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given

from kvstore.core.blob import parse_header
from kvstore.core.errors import IdentityError, InvalidInputError, KVError, NotFoundError
from kvstore.core.identity import ModelIdentity, RopeSpec
from kvstore.core.manifest import ITEM_NBYTES
from kvworker.chunk import DTYPES, ChunkSpec, KVChunk, PassageKV
from kvworker.codec.artifact import Artifact
from kvworker.codec.artifacts import Artifacts
from kvworker.codec.decode import ChunkDecoder, decode_part
from kvworker.codec.pipeline import Pipeline, expected_specs
from kvworker.codec.registry import declared_quality, pipeline_of
from kvworker.codec.specs import find_codec
from kvworker.codec.stages import Calibrated
from kvworker.engine.rope import placed, unplaced
from tests.contracts.codecs import UNIT_ROUNDOFF, Case, bits_of, cases, decode, encode, identity_for, make_passage, parts_of, ready
from tests.contracts.passages import BOUNDARIES, each_example, passages

CASES = cases()
TRAITS = {case.codec: find_codec(case.codec).traits for case in CASES}

each_codec = pytest.mark.parametrize("codec", [case.codec for case in CASES])
each_lossy = pytest.mark.parametrize("codec", [codec for codec, traits in TRAITS.items() if not traits.is_bit_exact])
each_exact = pytest.mark.parametrize("codec", [codec for codec, traits in TRAITS.items() if traits.is_bit_exact])
each_streamable = pytest.mark.parametrize("codec", [codec for codec, traits in TRAITS.items() if traits.is_layer_streamable])
each_granular = pytest.mark.parametrize("codec", [codec for codec, traits in TRAITS.items() if traits.is_token_granular])
each_relocatable = pytest.mark.parametrize("codec", [codec for codec, traits in TRAITS.items() if traits.is_relocatable])
each_calibrated = pytest.mark.parametrize("codec", [codec for codec, traits in TRAITS.items() if traits.needs_artifact])
each_splittable = pytest.mark.parametrize(
    "codec", [codec for codec, traits in TRAITS.items() if traits.is_tp_splittable and not traits.needs_artifact]
)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


@each_dtype
@each_codec
def test_encoding_twice_makes_equal_bytes(codec: str, dtype: str) -> None:
    identity = identity_for((2, 2, 16, 24), dtype=dtype)
    first, second = (encode(ready(codec, identity), identity, make_passage(identity, 33)) for _ in range(2))
    assert first == second


@each_dtype
@each_codec
def test_decoding_twice_makes_equal_values(codec: str, dtype: str) -> None:
    identity = identity_for((2, 2, 16, 24), dtype=dtype)
    pipeline = ready(codec, identity)
    blob = encode(pipeline, identity, make_passage(identity, 33))
    assert bits_of(decode(pipeline, blob)) == bits_of(decode(pipeline, blob))


@each_dtype
@each_codec
def test_decoded_tensors_have_the_shape_and_type_of_the_model(codec: str, dtype: str) -> None:
    identity = identity_for((2, 2, 16, 24), (1, 1, 8, 8), dtype=dtype)
    pipeline, passage = ready(codec, identity), make_passage(identity, 33)
    back = decode(pipeline, encode(pipeline, identity, passage))
    assert [chunk.spec for chunk in back] == [chunk.spec for chunk in passage]


@each_codec
def test_encoding_changes_no_input(codec: str) -> None:
    identity = identity_for((2, 2, 16, 24))
    passage = make_passage(identity, 33)
    before = bits_of(passage)
    encode(ready(codec, identity), identity, passage)
    assert bits_of(passage) == before


@each_codec
def test_the_need_of_rows_is_kept_beside_every_codec(codec: str) -> None:
    identity = identity_for((2, 2, 16, 24), (1, 1, 8, 8))
    pipeline, (first, *others) = ready(codec, identity), make_passage(identity, 9)
    need = torch.arange(9).half() / 16
    back = decode(pipeline, encode(pipeline, identity, (replace(first, need=need), *others)))
    assert [chunk.need is not None and torch.equal(chunk.need, need) for chunk in back] == [True, False]


@each_streamable
def test_a_part_decodes_without_the_other_parts(codec: str) -> None:
    """Streaming by layer group: part n is decoded when only header, manifest and its own bytes have arrived."""
    identity = identity_for((2, 2, 16, 24), (1, 1, 8, 8))
    pipeline = ready(codec, identity)
    blob = encode(pipeline, identity, make_passage(identity, 9))
    alone = decode_part(parse_header(blob).manifest, 1, bytes(parts_of(blob)[1]), pipeline=pipeline)
    assert bits_of((alone,)) == bits_of(decode(pipeline, blob)[1:])


@each_codec
def test_a_part_decodes_when_those_before_it_have_arrived(codec: str) -> None:
    """A loader hands parts over in order, whatever the codec."""
    identity = identity_for((2, 2, 16, 24), (1, 1, 8, 8), (1, 2, 8, 16))
    pipeline = ready(codec, identity)
    blob = encode(pipeline, identity, make_passage(identity, 9))
    whole = decode(pipeline, blob)
    decoder = ChunkDecoder(parse_header(blob).manifest, pipeline)
    first = [decoder.part(index, data) for index, data in enumerate(parts_of(blob)[:2])]
    assert bits_of(tuple(first)) == bits_of(whole[:2])


@each_streamable
def test_a_part_does_not_depend_on_the_other_parts(codec: str) -> None:
    identity = identity_for((2, 2, 16, 24), (1, 1, 8, 8))
    passage, other = (make_passage(identity, 9, seed) for seed in (0, 1))
    blobs = [encode(ready(codec, identity), identity, (first[0], passage[1])) for first in (passage, other)]
    assert parts_of(blobs[0])[1] == parts_of(blobs[1])[1]


@each_streamable
def test_a_layer_does_not_depend_on_the_layers_beside_it(codec: str) -> None:
    identity, single = identity_for((2, 2, 16, 24)), identity_for((1, 2, 16, 24), first=1)
    pipeline, passage = ready(codec, identity), make_passage(identity, 9)
    alone = tuple(KVChunk(chunk.k[1:], chunk.v[1:]) for chunk in passage)
    back = decode(pipeline, encode(pipeline, identity, passage))[0]
    assert bits_of(decode(pipeline, encode(pipeline, single, alone))) == bits_of((KVChunk(back.k[1:], back.v[1:]),))


@each_splittable
def test_a_head_does_not_depend_on_the_heads_beside_it(codec: str) -> None:
    """Workers that share the heads of a layer may each take their own."""
    identity, single = identity_for((1, 2, 16, 24)), identity_for((1, 1, 16, 24))
    (chunk,) = make_passage(identity, 9)
    (back,) = decode(find_codec(codec), encode(find_codec(codec), identity, (chunk,)))
    alone = (KVChunk(chunk.k[:, 1:], chunk.v[:, 1:]),)
    assert bits_of(decode(find_codec(codec), encode(find_codec(codec), single, alone))) == bits_of((KVChunk(back.k[:, 1:], back.v[:, 1:]),))


@each_granular
def test_a_token_does_not_depend_on_the_tokens_behind_it(codec: str) -> None:
    identity = identity_for((1, 2, 16, 24))
    pipeline, (chunk,) = ready(codec, identity), make_passage(identity, 33)
    (back,) = decode(pipeline, encode(pipeline, identity, (chunk,)))
    begun = (KVChunk(chunk.k[:, :, :20], chunk.v[:, :, :20]),)
    assert bits_of(decode(pipeline, encode(pipeline, identity, begun))) == bits_of((KVChunk(back.k[:, :, :20], back.v[:, :, :20]),))


@each_relocatable
def test_what_was_read_at_another_position_decodes_and_turns_to_the_same(codec: str) -> None:
    """K is stored before RoPE. Turning there and back moves a value by a few roundings, which may move a code to its neighbour:
    what that makes of K is within a tenth of what the codec loses in any case."""
    identity, rope = identity_for((2, 2, 16, 24)), RopeSpec("default", 10_000.0, 16)
    pipeline, (chunk,) = ready(codec, identity), make_passage(identity, 33)
    elsewhere = KVChunk(unplaced(placed(chunk.k, rope, 500), rope, 500), chunk.v)
    here, there = (placed(decode(pipeline, encode(pipeline, identity, (read,)))[0].k, rope, 70) for read in (chunk, elsewhere))
    lost = float((here - placed(chunk.k, rope, 70)).norm())
    assert float((here - there).norm()) <= 0.1 * lost + 1e-5 * float(here.norm())


@each_codec
def test_strided_tensors_are_stored_as_what_they_hold(codec: str) -> None:
    """An engine hands out slices of its cache, which are not contiguous."""
    identity = identity_for((1, 2, 16, 16))
    wide, pipeline = make_passage(identity, 20)[0], ready(codec, identity)
    sliced = KVChunk(wide.k[:, :, 3:12], wide.v[:, :, 3:12])
    copied = KVChunk(sliced.k.clone(), sliced.v.clone())
    assert encode(pipeline, identity, (sliced,)) == encode(pipeline, identity, (copied,))


@each_codec
def test_the_manifest_alone_rebuilds_the_codec(codec: str) -> None:
    identity = identity_for((1, 1, 8, 8))
    pipeline = ready(codec, identity)
    assert pipeline_of(parse_header(encode(pipeline, identity, make_passage(identity, 2))).manifest.codec) == pipeline


def test_every_codec_has_a_variant_of_its_own() -> None:
    assert len({find_codec(case.codec).spec.variant() for case in CASES}) == len({find_codec(case.codec) for case in CASES})


@each_dtype
@pytest.mark.parametrize("n_tokens", BOUNDARIES)
@pytest.mark.parametrize("case", [case for case in CASES if case.sizes], ids=str)
def test_a_part_has_the_size_of_the_formula(case: Case, n_tokens: int, dtype: str) -> None:
    """Fields are aligned to 64 bytes, the part ends with its last field."""
    identity = identity_for((2, 3, 40, 72), dtype=dtype)
    assert case.sizes
    end = 0
    for nbytes in case.sizes(ChunkSpec(2, 3, n_tokens, 40, 72, dtype)):
        end = -(-end // 64) * 64 + nbytes
    blob = encode(ready(case.codec, identity), identity, make_passage(identity, n_tokens))
    assert parse_header(blob).manifest.parts[0].nbytes == end


@each_codec
def test_bits_per_value_count_every_byte_that_is_stored(codec: str) -> None:
    identity = identity_for((2, 2, 16, 24), (1, 1, 8, 8))
    pipeline = ready(codec, identity)
    parts = parse_header(encode(pipeline, identity, make_passage(identity, 33))).manifest.parts
    specs = expected_specs(identity, 33)
    stored = sum(field.raw_nbytes for part in parts for field in part.fields)
    assert pipeline.bits_per_value(specs) == pytest.approx(8 * stored / sum(spec.n_values for spec in specs))


@each_dtype
@each_codec
def test_a_field_takes_at_most_its_raw_bytes(codec: str, dtype: str) -> None:
    """Noise packs to more than it was; it has to stay raw."""
    identity = identity_for((2, 2, 16, 24), dtype=dtype)
    parts = parse_header(encode(ready(codec, identity), identity, make_passage(identity, 9))).manifest.parts
    assert all(field.nbytes <= field.raw_nbytes for part in parts for field in part.fields)


def assert_within_bound(case: Case, before: torch.Tensor, after: torch.Tensor, axis: int, dtype: str) -> None:
    """Check one side. Slack: the cast to the model's type moves a value by its unit roundoff (and 2**-25, half the smallest float16);
    about six float32 roundings of values up to max|x| move it by 8 * 2**-24 * max|x|."""
    assert case.bound
    x, y = before.double(), after.double()
    slack = UNIT_ROUNDOFF[dtype] * y.abs() + 2.0**-25 + 8 * 2.0**-24 * x.abs().max()
    assert ((x - y).abs() <= case.bound(x, axis, dtype) + slack).all()


@pytest.mark.parametrize("case", [case for case in CASES if case.bound], ids=str)
@each_example
@given(drawn=passages())
def test_what_comes_back_is_within_the_stated_bound(case: Case, drawn: tuple[ModelIdentity, PassageKV]) -> None:
    identity, passage = drawn
    pipeline = ready(case.codec, identity)
    back = decode(pipeline, encode(pipeline, identity, passage))
    assert_within_bound(case, passage[0].k, back[0].k, -2, identity.dtype)
    assert_within_bound(case, passage[0].v, back[0].v, -1, identity.dtype)


@each_codec
@each_example
@given(drawn=passages())
def test_what_comes_back_is_finite_and_exact_where_that_is_promised(codec: str, drawn: tuple[ModelIdentity, PassageKV]) -> None:
    identity, passage = drawn
    pipeline = ready(codec, identity)
    back = decode(pipeline, encode(pipeline, identity, passage))
    assert all(torch.isfinite(x).all() for x in (back[0].k, back[0].v))
    assert (bits_of(back) == bits_of(passage)) or declared_quality(pipeline.spec) != "lossless"


@each_dtype
@each_exact
def test_lossless_codecs_restore_every_bit_pattern(codec: str, dtype: str) -> None:
    """NaN payloads, infinities, -0 and subnormals are among random bits."""
    identity = identity_for((2, 2, 64, 64), dtype=dtype)
    rng = torch.Generator().manual_seed(0)
    word = torch.int32 if dtype == "float32" else torch.int16
    span = torch.iinfo(word)
    k, v = (torch.randint(span.min, span.max, (2, 2, 300, 64), generator=rng, dtype=word).view(DTYPES[dtype]) for _ in range(2))
    pipeline = ready(codec, identity)
    assert bits_of(decode(pipeline, encode(pipeline, identity, (KVChunk(k, v),)))) == bits_of((KVChunk(k, v),))


@each_dtype
@pytest.mark.parametrize("case", [case for case in CASES if case.bound], ids=str)
def test_all_zero_values_decode_to_zero(case: Case, dtype: str) -> None:
    """A group without any range has no step to divide by."""
    identity = identity_for((1, 1, 8, 8), dtype=dtype)
    zeros = torch.zeros(1, 1, 5, 8, dtype=DTYPES[dtype])
    pipeline = ready(case.codec, identity)
    back = decode(pipeline, encode(pipeline, identity, (KVChunk(zeros, zeros.clone()),)))[0]
    assert torch.equal(back.k, zeros)
    assert torch.equal(back.v, zeros)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@each_lossy
def test_lossy_codecs_refuse_what_is_not_finite(codec: str, value: float) -> None:
    """One such value would spoil its whole group; the message names layer and count so that the writer can look."""
    identity = identity_for((2, 1, 8, 8), (2, 1, 8, 8))
    passage = make_passage(identity, 5)
    passage[1].v[1, 0, 2:4, 3] = value
    with pytest.raises(InvalidInputError, match="v of layer 3 holds 2 values that are NaN or beyond"):
        encode(ready(codec, identity), identity, passage)


def alternating(largest: float, dtype: str) -> PassageKV:
    """Return tokens that are all `largest` and all minus it, in turn: the widest range of every kind of group."""
    k = torch.full((1, 1, 4, 8), largest, dtype=DTYPES[dtype])
    k[:, :, ::2] *= -1
    return (KVChunk(k, k.clone()),)


@each_dtype
@each_lossy
def test_the_largest_values_that_are_taken_come_back_finite(codec: str, dtype: str) -> None:
    """Differences of two values and rounded-up scales must not overflow."""
    largest = min(torch.finfo(DTYPES[dtype]).max, 2.0**126 * (1 - 2.0**-8))
    identity = identity_for((1, 1, 8, 8), dtype=dtype)
    pipeline = ready(codec, identity)
    back = decode(pipeline, encode(pipeline, identity, alternating(largest, dtype)))[0]
    assert torch.isfinite(back.k).all()
    assert torch.isfinite(back.v).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@each_lossy
def test_larger_values_are_refused(codec: str, dtype: str) -> None:
    identity = identity_for((1, 1, 8, 8), dtype=dtype)
    with pytest.raises(InvalidInputError, match="holds 32 values"):
        encode(ready(codec, identity), identity, alternating(2.0**126, dtype))


@each_codec
def test_a_passage_of_no_tokens_is_refused(codec: str) -> None:
    identity = identity_for((1, 1, 8, 8))
    with pytest.raises(InvalidInputError, match="0 tokens"):
        encode(ready(codec, identity), identity, make_passage(identity, 0))


@each_codec
def test_damage_inside_the_fields_decodes_to_something_or_is_refused(codec: str) -> None:
    """Whoever may write chunks can make their digests match: no bytes may crash a reader."""
    identity = identity_for((1, 2, 16, 24))
    pipeline = ready(codec, identity)
    blob = encode(pipeline, identity, make_passage(identity, 33))
    manifest, (part,), rng = parse_header(blob).manifest, parts_of(blob), np.random.default_rng(0)
    outcomes = set()
    for _ in range(20):
        noise = rng.integers(0, 256, part.nbytes, dtype=np.uint8).tobytes()
        try:
            outcomes.add(decode_part(manifest, 0, noise, pipeline=pipeline).spec == make_passage(identity, 33)[0].spec)
        except KVError:
            outcomes.add(True)
    assert outcomes == {True}


@each_codec
def test_field_types_are_known_to_the_manifest(codec: str) -> None:
    """A codec may only store types that a manifest can name."""
    identity = identity_for((1, 1, 8, 8))
    types = {dtype for dtype, _ in ready(codec, identity).layout(expected_specs(identity, 9), 0).values()}
    assert types <= set(ITEM_NBYTES)


def calibrated_stage(pipeline: Pipeline) -> Calibrated:
    """Return the first stage that needs an artifact."""
    return next(stage for stage in pipeline.stages if isinstance(stage, Calibrated))


@each_calibrated
def test_a_calibrated_codec_without_its_artifact_says_what_to_run(codec: str) -> None:
    identity = identity_for((1, 1, 8, 8))
    blob = encode(ready(codec, identity), identity, make_passage(identity, 9))
    manifest, (part,) = parse_header(blob).manifest, parts_of(blob)
    with pytest.raises(NotFoundError, match="larder calibrate"):
        pipeline_of(manifest.codec).bound(Artifacts(identity.namespace))
    with pytest.raises(NotFoundError, match="larder calibrate"):
        decode_part(manifest, 0, part)


@each_calibrated
def test_an_artifact_of_another_model_is_refused(codec: str) -> None:
    identity, other = identity_for((1, 1, 8, 8)), identity_for((1, 1, 8, 16))
    stage = calibrated_stage(ready(codec, identity))
    artifact = Artifact(identity.namespace, stage.subject, {0: {"x": torch.zeros(1)}})
    with pytest.raises(IdentityError, match="larder calibrate"):
        Artifacts(other.namespace).add(artifact)


@each_calibrated
def test_tables_fitted_twice_are_equal(codec: str) -> None:
    identity = identity_for((2, 2, 16, 24))
    assert ready(codec, identity) == ready(codec, identity)


@each_calibrated
def test_values_far_beyond_the_calibrated_ones_come_back_finite(codec: str) -> None:
    """Text that was not seen may hold them."""
    identity = identity_for((1, 2, 16, 16))
    pipeline, (chunk,) = ready(codec, identity), make_passage(identity, 33)
    far = KVChunk(chunk.k * 1e4, chunk.v * 1e4)
    back = decode(pipeline, encode(pipeline, identity, (far,)))[0]
    assert math.isfinite(float(back.k.sum() + back.v.sum()))
