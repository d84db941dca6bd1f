"""ThinK by a passage's own queries: they decide, the mask travels with the chunk, and a mask that lies is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

import kvworker.reference
from kvclient.reader import chunk as numpy_reader
from kvkernels import think
from kvstore.core.blob import BufferedBlob, parse_header
from kvstore.core.errors import FormatError, InvalidInputError
from kvstore.core.identity import ModelIdentity
from kvstore.core.key import Kind
from kvworker.calibrate.collect import Collector
from kvworker.calibrate.texts import readings
from kvworker.chunk import KVChunk, PassageKV
from kvworker.codec import decode
from kvworker.codec.pipeline import Pipeline
from kvworker.codec.specs import find_codec
from kvworker.engine.engine import N_PROBES
from kvworker.engine.engine_hf import HFEngine, load_engine
from kvworker.methods.transform.think import Think
from kvworker.methods.transform.think_queries import ThinkQueries
from kvworker.quality import notes
from kvworker.quality.answers import Asking
from kvworker.quality.errors import errors_of
from kvworker.quality.ladder import sample_of
from tests.codecs.synth import DIM, HEADS, Synthetic, layer
from tests.codecs.synth_model import attention_error, statistics_of

CODEC = "think_queries:drop=40+raw"


def asked_by(text: Synthetic) -> KVChunk:
    """Return the chunk of a text with what its queries ask for."""
    return KVChunk(text.k, text.v, asked=text.q.square().mean(1)[None])


def like_the_text_alone(text_seed: int, sizes_seed: int) -> Synthetic:
    """Return the synthetic layer under queries whose pairs differ in size in a way of this text's own."""
    text = layer(text_seed)
    sizes = torch.randn(HEADS, 1, DIM // 2, generator=torch.Generator().manual_seed(sizes_seed)).exp().repeat(1, 1, 2)
    return replace(text, q=text.q * sizes / sizes.square().mean(-1, keepdim=True).sqrt())


def lost(stage: Think | ThinkQueries, text: Synthetic, chunk: KVChunk) -> float:
    """Return what dropping channels of a chunk does to attention."""
    spec = replace(chunk.spec, layers=(0,))
    back = stage.restore(*stage.apply(chunk, spec), spec)
    return attention_error(text, back.k, back.v)


def test_a_prefix_with_habits_of_its_own_keeps_what_it_asks_for() -> None:
    """The decisive check at 40 % of the pairs: queries of another kind than those that the model was calibrated with."""
    text, calibration = like_the_text_alone(0, 3), like_the_text_alone(100, 4)
    static = Think().bound(Think().fit(statistics_of(KVChunk(calibration.k, calibration.v), calibration.q)))
    by_model, by_text, unasked = (
        lost(stage, text, chunk)
        for stage, chunk in ((static, asked_by(text)), (ThinkQueries(), asked_by(text)), (ThinkQueries(), KVChunk(text.k, text.v)))
    )
    assert by_text <= 0.5 * unasked
    assert by_text <= 0.5 * by_model


def test_where_all_texts_are_asked_alike_it_is_as_good_as_the_model_s_mask() -> None:
    text, calibration = like_the_text_alone(0, 3), like_the_text_alone(100, 3)
    static = Think().bound(Think().fit(statistics_of(KVChunk(calibration.k, calibration.v), calibration.q)))
    assert lost(ThinkQueries(), text, asked_by(text)) <= 1.05 * lost(static, text, asked_by(text))


@pytest.fixture(scope="module")
def model() -> tuple[HFEngine, Pipeline]:
    """The reference model, and ThinK's static mask of other text of the kind that is coded."""
    engine = load_engine(Path(kvworker.reference.__file__).parent / "model", device="cpu")
    collector = Collector(engine.identity)
    for ids in islice(readings(engine, ()), 4):
        collector.add(engine.study(ids[:600]))
    static = Think().bound(Think().fit(collector.statistics()))
    return engine, Pipeline((static, *find_codec("raw").stages))


def test_on_a_trained_model_a_prefix_s_own_mask_loses_less_attention_than_the_model_s(model: tuple[HFEngine, Pipeline]) -> None:
    """At 40 % of the pairs, under the queries of the 32 rows behind the prefix; mean of three texts."""
    engine, static = model
    losses = {static: 0.0, find_codec(CODEC): 0.0}
    for seed in range(60_000, 60_003):
        texts = notes.in_prompt(seed, 8, 1).texts
        ids = [token for text in texts for token in (engine.bos_id or 0, *engine.encode(text))]
        kv, probes = engine.export([ids[:-N_PROBES]], n_observed=N_PROBES)[0], engine.study(ids).probes
        for codec in losses:
            losses[codec] += errors_of(kv, through(codec, engine, kv), engine.identity.layout, probes).mean_attention / 3
    assert losses[find_codec(CODEC)] <= 0.9 * losses[static]


def test_on_a_trained_model_answers_move_less_than_under_the_model_s_mask(model: tuple[HFEngine, Pipeline]) -> None:
    """First tokens of answers over two prefixes, beside those over KV that lost nothing."""
    engine, static = model
    asking = Asking(engine, [notes.in_prompt(seed, 8, 8) for seed in (60_000, 60_001)])
    by_model, by_text = (asking.ask(partial(through, codec, engine)) for codec in (static, find_codec(CODEC)))
    assert by_text.top1 >= by_model.top1
    assert by_text.kl <= 0.5 * by_model.kl


def through(codec: Pipeline, engine: HFEngine, kv: PassageKV) -> PassageKV:
    """Return what a codec gives back of a passage."""
    reader = BufferedBlob(codec.encode(kv, engine.identity, Kind.ALONE, b"\7" * 32), "")
    return decode.decode_chunk(reader.manifest, map(reader.part, range(len(kv))), codec)


def test_queries_outweigh_the_spread_of_keys() -> None:
    """Pair 0 spreads least and is all that anybody asks for."""
    chunk = KVChunk(torch.randn(1, 1, 9, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 1, 9, 8))
    chunk.k[..., 0::4] *= 0.01
    asked = torch.full((1, 1, 8), 1e-9)
    asked[..., 0::4] = 1.0
    for known, is_kept in ((asked, True), (None, False)):
        _, fields = ThinkQueries(75).apply(replace(chunk, asked=known), chunk.spec)
        assert bool(fields["think_queries.mask"][0, 0, 0] & 1) is is_kept


@pytest.mark.parametrize("dim", [2, 7, 16, 33])
@pytest.mark.parametrize("percent", [20, 40, 90])
def test_a_mask_says_what_is_kept_and_what_is_not(dim: int, percent: int) -> None:
    rng = torch.Generator().manual_seed(0)
    kept = think.choose(torch.rand(2, 3, dim, generator=rng), torch.rand(2, 3, dim, generator=rng), percent)
    back, others = think.from_mask(think.to_mask(kept, dim), dim, percent)
    assert torch.equal(back, kept)
    assert torch.equal(torch.cat((kept, others), -1).sort(-1).values, torch.arange(dim).expand(2, 3, -1))


def test_keys_as_large_as_any_taken_have_a_finite_mean() -> None:
    """Sums of such keys are not finite in float32."""
    k = torch.full((1, 1, 64, 8), 1.9 * 2.0**125)
    chunk = KVChunk(k, k.clone())
    inner, fields = ThinkQueries().apply(chunk, chunk.spec)
    torch.testing.assert_close(ThinkQueries().restore(inner, fields, chunk.spec).k, k)


def test_one_token_comes_back_exactly() -> None:
    """It is its own mean."""
    k = torch.randn(2, 2, 1, 16, generator=torch.Generator().manual_seed(0))
    chunk = KVChunk(k, k.clone())
    inner, fields = ThinkQueries().apply(chunk, chunk.spec)
    assert torch.equal(ThinkQueries().restore(inner, fields, chunk.spec).k, k)


def test_sinks_and_the_gate_s_sample_hand_on_what_is_asked(identity: ModelIdentity) -> None:
    rng = torch.Generator().manual_seed(0)
    shape = (2, 2, 300, 16)
    chunk = KVChunk(torch.randn(shape, generator=rng), torch.randn(shape, generator=rng), asked=torch.rand(2, 2, 16, generator=rng))
    behind, _ = find_codec("sinks+raw").transforms[0].apply(chunk, chunk.spec)
    assert behind.asked is chunk.asked
    (sample,) = sample_of((chunk,), b"\7" * 32)
    assert sample.spec.n_tokens < 300
    assert sample.asked is chunk.asked


def masked_with(passage: PassageKV, identity: ModelIdentity, mask: int) -> tuple[Pipeline, bytearray, bytes]:
    """Return codec, blob and part 0 of a passage with every byte of the first mask set to `mask`; eight pairs, five of which are kept."""
    pipeline = find_codec(CODEC)
    blob = pipeline.encode(passage, identity, Kind.ALONE, b"\7" * 32)
    part = parse_header(blob).manifest.parts[0]
    data = bytearray(blob[part.offset : part.offset + part.nbytes])
    (field,) = [field for field in part.fields if field.name == "think_queries.mask"]
    data[field.offset : field.offset + field.nbytes] = bytes([mask]) * field.nbytes
    return pipeline, blob, bytes(data)


@pytest.mark.parametrize("decode_part", [decode.decode_part, numpy_reader.decode_part], ids=["torch", "numpy"])
@pytest.mark.parametrize("mask", [0, 0b1, 0b1111111, 0b11111111], ids=["none", "too few", "too many", "all"])
def test_a_mask_of_another_number_of_pairs_is_refused(passage: PassageKV, identity: ModelIdentity, mask: int, decode_part: object) -> None:
    """A bit per pair names no channel twice; what is left to lie about is how many."""
    _, blob, data = masked_with(passage, identity, mask)
    with pytest.raises(FormatError, match="in each head; this one keeps"):
        decode_part(parse_header(blob).manifest, 0, data)


@pytest.mark.parametrize("decode_part", [decode.decode_part, numpy_reader.decode_part], ids=["torch", "numpy"])
def test_a_bit_for_a_pair_that_is_not_there_is_refused(identity: ModelIdentity, passage: PassageKV, decode_part: object) -> None:
    """The second group has four pairs in a byte, three of which are kept."""
    blob = find_codec(CODEC).encode(passage, identity, Kind.ALONE, b"\7" * 32)
    manifest = parse_header(blob).manifest
    part = manifest.parts[1]
    data = bytearray(blob[part.offset : part.offset + part.nbytes])
    data[0] |= 0b10000000
    with pytest.raises(FormatError, match="keeps 3 of 4 pairs"):
        decode_part(manifest, 1, bytes(data))


def test_a_mask_of_another_length_is_refused(identity: ModelIdentity, passage: PassageKV) -> None:
    blob = find_codec(CODEC).encode(passage, identity, Kind.ALONE, b"\7" * 32)
    manifest = parse_header(blob).manifest
    part = manifest.parts[0]
    first = replace(part.fields[0], shape=(2, 2, 2), nbytes=8)
    lying = replace(manifest, parts=(replace(part, fields=(first, *part.fields[1:])), *manifest.parts[1:]))
    for decode_part in (decode.decode_part, numpy_reader.decode_part):
        with pytest.raises(FormatError, match=r"think_queries\.mask"):
            decode_part(lying, 0, bytes(blob[part.offset : part.offset + part.nbytes]))


def test_numpy_puts_channels_where_torch_does_with_queries_at_hand(identity: ModelIdentity, passage: PassageKV) -> None:
    rng = torch.Generator().manual_seed(1)
    told = tuple(replace(chunk, asked=torch.rand(*chunk.k.shape[:2], chunk.k.shape[3], generator=rng)) for chunk in passage)
    blob = find_codec(CODEC).encode(told, identity, Kind.ALONE, b"\7" * 32)
    manifest = parse_header(blob).manifest
    for index, part in enumerate(manifest.parts):
        data = bytes(blob[part.offset : part.offset + part.nbytes])
        k, _ = numpy_reader.decode_part(manifest, index, data)
        np.testing.assert_array_equal(k, decode.decode_part(manifest, index, data).k.float().numpy())


@pytest.mark.parametrize("asked", [torch.ones(1, 2, 16), torch.ones(2, 2, 16).half(), torch.ones(2, 2, 9, 16)])
def test_what_is_asked_has_the_shape_of_heads_and_channels(passage: PassageKV, asked: torch.Tensor) -> None:
    with pytest.raises(InvalidInputError, match=r"asked must be \(2, 2, 16\) float32"):
        replace(passage[0], asked=asked)


@pytest.mark.parametrize("drop", [0, 91, -1])
def test_dropping_nothing_or_nearly_all_is_refused(drop: int) -> None:
    with pytest.raises(InvalidInputError, match="within 1 and 90 percent"):
        ThinkQueries(drop)
