"""The ladder of presets: a passage is stored as what was asked for, or as something safer, and never loses more than was declared."""

from __future__ import annotations

import logging

import pytest
import torch

from kvstore.core.blob import parse_header
from kvstore.core.errors import UnsupportedError
from kvstore.core.key import Kind
from kvstore.planners.cost import CostModel
from kvstore.planners.linear import LinearCost
from kvstore.planners.samples import SPLICE, codec_subject, tier_subject
from kvworker.calibrate.collect import Collector
from kvworker.calibrate.files import save_statistics
from kvworker.calibrate.probes import latest_probes, save_probes
from kvworker.chunk import KVChunk, PassageKV
from kvworker.codec.artifacts import Artifacts
from kvworker.codec.presets import LADDER
from kvworker.codec.specs import PRESETS, find_codec
from kvworker.engine.engine import Study
from kvworker.quality.ladder import Ladder, Rung, ladder_of, lost_by, sample_of
from tests.contracts.codecs import identity_for, make_passage

MODEL = identity_for((2, 2, 16, 16), dtype="bfloat16")
CONTENT = bytes(range(32))


def plain(text: str, needs_fine_keys: bool = False) -> Ladder:
    """Return a ladder of a model that was not calibrated."""
    return ladder_of(text, MODEL, Artifacts(MODEL.namespace), needs_fine_keys)


def names(ladder: Ladder) -> list[str]:
    """Return what the rungs are called."""
    return [rung.name for rung in ladder.rungs]


def passage(n_tokens: int = 40) -> PassageKV:
    """Return random values; all of their keys' channels are alike."""
    rng = torch.Generator().manual_seed(0)
    return (KVChunk(*(torch.randn(2, 2, n_tokens, 16, generator=rng).bfloat16() for _ in range(2))),)


def test_a_preset_falls_back_step_by_step_to_lossless() -> None:
    assert names(plain("small")) == ["small", "balanced", "near-lossless", "lossless"]


def test_a_codec_that_is_no_preset_is_taken_at_its_word() -> None:
    """Who names a codec has decided; nothing is measured and nothing else is stored."""
    ladder = plain("kivi:bits=2,group=32")
    assert names(ladder) == ["kivi:bits=2,group=32"]
    assert ladder.choose((KVChunk(passage()[0].k * 1e3, passage()[0].v),), CONTENT).codec == ladder.first


def test_presets_are_ordered_by_what_they_may_lose() -> None:
    assert [preset.limit for preset in LADDER] == sorted(preset.limit for preset in LADDER)
    assert LADDER[0].limit == 0
    assert find_codec(LADDER[0].plain).traits.is_bit_exact


def test_every_preset_is_a_codec_without_tables() -> None:
    """A model that nobody calibrated can be stored as any of them."""
    assert all(not find_codec(PRESETS[preset.name]).traits.needs_artifact for preset in LADDER)


def test_what_keeps_to_the_limit_is_stored_as_asked_for() -> None:
    assert plain("near-lossless").choose(passage(), CONTENT).name == "near-lossless"


def test_what_would_lose_too_much_is_stored_safer(caplog: pytest.LogCaptureFixture) -> None:
    """One channel a thousand times the others takes all steps of a token: V keeps little else. The log has the numbers."""
    (chunk,) = passage()
    v = chunk.v.clone()
    v[..., ::2] *= 30
    v[..., 1::2] = v[..., 1::2] + 200 * torch.randn(v.shape[:-1]).sign()[..., None].bfloat16()
    rungs = (
        Rung("two bits", find_codec("kivi:bits=2,group=32"), 0.05),
        Rung("int8", find_codec("int8"), 0.05),
        Rung("raw", find_codec("raw")),
    )
    with caplog.at_level(logging.WARNING):
        chosen = Ladder(rungs, MODEL, {}).choose((KVChunk(chunk.k, v),), CONTENT)
    assert chosen.name == "int8"
    assert "V by" in caplog.text


def test_what_no_lossy_codec_takes_is_stored_lossless() -> None:
    """Infinity among the values."""
    (chunk,) = passage()
    v = chunk.v.clone()
    v[0, 0, 3, 3] = torch.inf
    assert plain("tiny").choose((KVChunk(chunk.k, v),), CONTENT).name == "lossless"


def test_attention_is_judged_where_there_are_probes() -> None:
    """Keys that differ by little beside a large mean: their error is small, and what the queries make of it is not."""
    (chunk,) = passage()
    k = chunk.k + 40
    probes = {layer: 8 * torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(layer)) for layer in (0, 1)}
    rungs = (Rung("int8", find_codec("int8"), 0.05), Rung("raw", find_codec("raw")))
    assert Ladder(rungs, MODEL, {}).choose((KVChunk(k, chunk.v),), CONTENT).name == "int8"
    assert Ladder(rungs, MODEL, probes).choose((KVChunk(k, chunk.v),), CONTENT).name == "raw"


def test_models_whose_keys_need_care_get_four_bits_at_least() -> None:
    """Query heads that crowd on few KV heads, or a bias in the keys: 3-bit keys collapse there."""
    assert names(plain("tiny", needs_fine_keys=True)) == ["balanced", "near-lossless", "lossless"]


def over(link_bytes_per_s: float) -> CostModel:
    """Return costs of a store behind this link, where zstd unpacks 1 GB/s."""
    decodes = {"raw": 0.0, "exponent_split+zstd": 1.4e-9}
    costs = {codec_subject(codec): LinearCost((0.0, byte_s), 0.0, 9) for codec, byte_s in decodes.items()}
    return CostModel(
        {**costs, tier_subject("memory"): LinearCost((0.0, 1 / link_bytes_per_s), 0.0, 9), SPLICE: LinearCost((0.0, 0.0), 0.0, 9)}
    )


@pytest.mark.parametrize(("link_bytes_per_s", "label"), [(5e9, "raw"), (5e7, "exponent_split+zstd")])
@pytest.mark.parametrize("n_tokens", [40, 400])
def test_a_preset_has_byte_stages_where_the_link_is_slow(link_bytes_per_s: float, label: str, n_tokens: int) -> None:
    """Of a long passage a sample says what packing saves."""
    assert plain("lossless").form(passage(n_tokens), CONTENT, over(link_bytes_per_s)).spec.label == label


def test_a_fallback_has_them_where_the_link_is_slow() -> None:
    (chunk,) = passage()
    v = chunk.v.clone()
    v[0, 0, 3, 3] = torch.inf
    assert plain("near-lossless").form((KVChunk(chunk.k, v),), CONTENT, over(5e9)).spec.label == "raw"


def test_a_codec_text_keeps_its_byte_stages() -> None:
    """Who names a codec has decided."""
    ladder = plain("exponent_split+zstd:level=1,fields=exponent")
    assert ladder.form(passage(), CONTENT, over(5e9)) == ladder.first
    assert ladder.codecs == [ladder.first]


def test_what_a_manifest_names_is_found_among_the_codecs_of_the_ladder() -> None:
    ladder = plain("lossless")
    assert [ladder.codec_of(codec.spec) for codec in ladder.codecs] == ladder.codecs
    with pytest.raises(UnsupportedError, match="none that lossless may be stored as"):
        ladder.codec_of(find_codec("int8").spec)


def test_a_ladder_looks_for_chunks_under_every_rung() -> None:
    ladder = plain("balanced")
    keys = ladder.keys(CONTENT)
    assert len(set(keys)) == 4
    assert [codec.spec.label for codec in ladder.codecs][1:] == ["int8", "exponent_split+zstd", "raw"]
    assert keys[0].variant == ladder.first.spec.variant()


def test_a_calibrated_model_gets_calibrated_presets() -> None:
    artifacts = Artifacts(MODEL.namespace)
    ones = {layer: torch.ones(300) for layer in (0, 1)}
    collector = Collector(MODEL)
    collector.add(Study(passage(300), {layer: torch.ones(2, 16) for layer in (0, 1)}, ones, ones))
    save_statistics(collector.statistics(), MODEL, artifacts)
    ladder = ladder_of("balanced", MODEL, artifacts)
    assert ladder.first.traits.needs_artifact
    assert ladder_of("balanced", MODEL, artifacts).first.spec == ladder.first.spec
    assert 0 < lost_by(ladder.first, passage(), MODEL, {}).v < 1


def test_probes_are_kept_for_later() -> None:
    artifacts = Artifacts(MODEL.namespace)
    assert latest_probes(artifacts) == {}
    probes = {0: torch.randn(2, 5, 16), 1: torch.randn(2, 5, 16)}
    save_probes(probes, MODEL.namespace, artifacts)
    assert torch.equal(latest_probes(artifacts)[1], probes[1])


@pytest.mark.parametrize("n_tokens", [1, 71, 72])
def test_short_passages_are_judged_whole(n_tokens: int) -> None:
    assert sample_of(make_passage(MODEL, n_tokens), CONTENT)[0].spec.n_tokens == n_tokens


@pytest.mark.parametrize(("n_tokens", "n_sampled"), [(500, 72), (6400, 108)])
def test_long_passages_are_judged_by_their_beginning_and_a_run(n_tokens: int, n_sampled: int) -> None:
    """A 64th of the tokens, 64 at least, behind the first 8, which attention sinks are among."""
    k = torch.arange(n_tokens, dtype=torch.float32)[None, None, :, None].expand(1, 1, n_tokens, 2)
    (sample,) = sample_of((KVChunk(k, k),), CONTENT)
    rows = sample.k[0, 0, :, 0]
    assert len(rows) == n_sampled
    assert rows[:8].tolist() == list(range(8))
    assert (rows[9:].diff() == 1).all()
    assert rows[8] >= 8


def test_equal_passages_are_judged_equally() -> None:
    """Every worker decides the same."""
    kv = make_passage(MODEL, 500)
    assert torch.equal(sample_of(kv, CONTENT)[0].k, sample_of(kv, CONTENT)[0].k)
    assert not torch.equal(sample_of(kv, CONTENT)[0].k, sample_of(kv, CONTENT[::-1])[0].k)


def test_the_rung_that_was_chosen_is_what_the_blob_says() -> None:
    rung = plain("balanced").choose(passage(), CONTENT)
    blob = rung.codec.encode(passage(), MODEL, Kind.ALONE, CONTENT)
    assert parse_header(blob).manifest.codec == rung.codec.spec
