"""The codec benchmark: every method is measured, with the metrics that its readers expect, and raw KV loses nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvstore.core.discovery import known_names
from kvworker.bench.benchmark import Asked
from kvworker.bench.codec_catalogue import UNCALIBRATED, catalogue
from kvworker.bench.codec_subjects import OwnCodec, peers
from kvworker.bench.codecs import CodecsBench, by_variant
from kvworker.bench.rows import Row
from kvworker.calibrate.calibrate import Reach
from kvworker.codec.presets import LADDER
from kvworker.codec.registry import QUANTIZERS, TRANSFORMS
from kvworker.codec.specs import find_codec
from kvworker.engine.engine_hf import load_engine
from kvworker.quality import notes
from kvworker.quality.answers import Asking
from kvworker.reference import MODEL_FOLDER
from tests.contracts.codecs import identity_for, make_passage

METRICS = {
    "bits_per_value",
    "encode_gb_per_s",
    "decode_gb_per_s",
    "k_err",
    "v_err",
    "attn_err",
    "attn_err_worst_layer",
    "worst_layer",
    "top1",
    "kl",
    "accuracy",
}


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Return what a run over two codecs yields, one of them calibrated, without peers."""
    torch.set_num_threads(1)
    bench = CodecsBench((64,), ("int8", "skvq:group=16"), 1, 1, Reach(200, 1.0))
    return [row for row in bench.run(Asked()) if not row.variant.startswith("transformers")]


def test_every_variant_has_every_metric(rows: list[Row]) -> None:
    """The names are an interface: plots and pages read them."""
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row.variant, set()).add(row.metric)
    assert found == {"raw": METRICS, "int8": METRICS, "skvq:group=16": METRICS | {"artifact_mb"}}


def test_raw_kv_is_what_others_are_compared_with(rows: list[Row]) -> None:
    (raw, *_) = by_variant(rows)
    assert [raw[name] for name in ("k_err", "v_err", "attn_err", "kl", "top1")] == [0, 0, 0, 0, 1]


def test_bits_count_the_whole_blob(rows: list[Row]) -> None:
    """Manifest and padding too: of 64 tokens, 16 bits and those."""
    raw = next(record for record in by_variant(rows) if record["variant"] == "raw")
    assert 16 < raw["bits_per_value"] < 16.5


def test_more_is_lost_where_fewer_bits_are_kept(rows: list[Row]) -> None:
    int8, skvq = by_variant(rows)[1:]
    assert int8["bits_per_value"] > skvq["bits_per_value"]
    assert 0 < int8["attn_err"] < skvq["attn_err"]


def test_every_method_and_preset_is_in_the_catalogue() -> None:
    """A method that nobody listed is measured with its defaults."""
    texts = catalogue()
    in_presets = [text for preset in LADDER for text in (preset.plain, preset.calibrated)]
    named = {stage.partition(":")[0] for text in (*texts, *in_presets, "raw") for stage in text.split("+")}
    assert {*known_names(QUANTIZERS), *known_names(TRANSFORMS), *known_names("kvstore.codecs")} <= named
    assert {preset.name for preset in LADDER} <= set(texts)


def test_every_codec_of_the_catalogue_is_there_once() -> None:
    calibrated = {preset.name: preset.calibrated or preset.plain for preset in LADDER}
    codecs = [find_codec({**calibrated, **UNCALIBRATED}.get(text, text)) for text in catalogue()]
    assert len(set(codecs)) == len(codecs)


def test_peers_that_are_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table then has our rows only."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert list(peers(identity_for((1, 1, 8, 8)))) == []


def test_our_codecs_are_measured_through_their_blobs() -> None:
    """Sizes and errors are those of stored bytes."""
    identity = identity_for((2, 2, 16, 24), dtype="bfloat16")
    passage = make_passage(identity, 33)
    kept = OwnCodec("raw", find_codec("raw"), identity).encode(passage)
    assert kept.nbytes > passage[0].nbytes
    assert torch.equal(kept.decode()[0].k, passage[0].k)


def test_kv_without_content_costs_answers() -> None:
    """Zeros instead of V leave nothing to answer from."""
    asking = Asking(load_engine(MODEL_FOLDER, "cpu"), [notes.in_prompt(70_000, 4, 4)])
    same = asking.ask(lambda kv: kv)
    empty = asking.ask(lambda kv: tuple(replace(chunk, v=torch.zeros_like(chunk.v)) for chunk in kv))
    assert (same.top1, same.kl) == (1.0, 0.0)
    assert empty.accuracy < same.accuracy
    assert empty.kl > 0.1
