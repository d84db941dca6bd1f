"""Presets in service: what a passage may not be stored as it is stored safer, found again, and said so."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvstore.core.api import BlobReader, Status
from kvstore.core.errors import TierUnavailableError
from kvstore.planners.cost import CostModel
from kvstore.planners.samples import DecodeSample, ReadSample
from kvworker.calibrate.calibrate import gather
from kvworker.calibrate.files import save_statistics
from kvworker.calibrate.probes import save_probes
from kvworker.codec.artifact import artifact_key
from kvworker.codec.artifacts import ARTIFACTS, Artifacts
from kvworker.codec.decode import decode_chunk
from kvworker.codec.registry import bound_pipeline_of
from kvworker.codec.stages import Calibrated
from kvworker.quality.ladder import Ladder
from kvworker.serve import runtime
from kvworker.serve.runtime import model_folder
from tests.engine.prompts import Tiny, random_passages
from tests.worker.conftest import MakeLab
from tests.worker.lab import FailingLookup, Lab, Wrapped


def stored(lab: Lab) -> set[str]:
    """Return the codecs of everything in the store."""
    return {entry.codec for entry in lab.caller.store.entries()}


def stored_chunk(lab: Lab, name: str) -> BlobReader:
    """Return a passage's chunk."""
    reader = lab.caller.store.get(lab.worker.resolve(lab.caller, [name])[0][1])
    assert reader is not None
    return reader


def strict(monkeypatch: pytest.MonkeyPatch, lab: Lab) -> None:
    """Let the first rung of a worker's ladder lose nothing."""
    ladder = lab.worker.ladder
    tight = Ladder((replace(ladder.rungs[0], limit=0.0), *ladder.rungs[1:]), ladder.identity, ladder.probes)
    monkeypatch.setattr(lab.worker._ingestor, "_ladder", tight)


def test_a_passage_is_stored_as_the_preset_says(make_lab: MakeLab) -> None:
    lab = make_lab(codec="near-lossless")
    lab.names()
    assert stored(lab) == {"int8"}


def test_a_passage_that_would_lose_too_much_is_stored_safer_and_loaded(make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report names the codec that it came in."""
    lab = make_lab(codec="near-lossless")
    strict(monkeypatch, lab)
    names = lab.names()
    report = lab.ask(names, planner="always_load", policy="none").report
    assert stored(lab) == {"exponent_split+zstd"}
    assert {(p.action, p.variant) for p in report.passages} == {("load", "exponent_split+zstd")}


def link(lab: Lab, bytes_per_s: float) -> None:
    """Let a worker's store be behind such a link, and let zstd unpack 1 GB/s."""
    decodes = {"raw": 1e-12, "exponent_split+zstd": 1.4e-9}
    for label, byte_s in decodes.items():
        lab.worker.costs.observe([DecodeSample(label, n, byte_s * n) for n in (1 << 16, 1 << 20)])
    lab.worker.costs.observe([ReadSample("memory", n, n / bytes_per_s) for n in (1 << 16, 1 << 20)] * 20)


@pytest.mark.parametrize(("bytes_per_s", "label"), [(20e9, "raw"), (20e6, "exponent_split+zstd")])
def test_a_worker_packs_what_is_read_over_a_slow_link(make_lab: MakeLab, bytes_per_s: float, label: str) -> None:
    """The same preset; what is stored is loaded, found by its name and not stored again."""
    lab = make_lab(codec="lossless")
    link(lab, bytes_per_s)
    names = lab.names()
    assert stored(lab) == {label}
    report = lab.ask(names, planner="always_load", policy="none").report
    assert {(p.action, p.variant) for p in report.passages} == {("load", label)}
    with closing(stored_chunk(lab, names[0])) as reader:
        assert reader.manifest.codec.label == label


def test_a_store_that_fails_leaves_passages_their_names(make_lab: MakeLab) -> None:
    """Who resolves them learns the key of the codec asked for, and then that nothing answers there."""
    lab = make_lab(codec="lossless")
    names = lab.names()
    failing = FailingLookup(lab.caller.store, TierUnavailableError("gone"))
    ((_, key), *_) = lab.worker.resolve(lab.caller_with(failing), names)
    assert key.variant == lab.worker.ladder.first.spec.variant()


def test_what_was_stored_over_another_link_is_read_as_it_is(make_lab: MakeLab) -> None:
    """Nothing that is stored is encoded again."""
    lab = make_lab(codec="lossless")
    link(lab, 20e6)
    lab.names("a.txt", ["Aldermoor exports salt."])
    link(lab, 20e9)
    assert not any(done.computed for done in lab.worker.ingest(lab.caller, "again.txt", ["Aldermoor exports salt."]))
    assert stored(lab) == {"exponent_split+zstd"}


def test_a_document_is_read_on_from_chunks_of_either_form(make_lab: MakeLab) -> None:
    """A passage is added to a document whose first was stored packed."""
    lab = make_lab(codec="lossless")
    link(lab, 20e6)
    lab.names("a.txt", ["Aldermoor exports salt."])
    link(lab, 20e9)
    first, second = lab.worker.ingest(lab.caller, "a.txt", ["Aldermoor exports salt.", "It lies by the sea."])
    assert (first.computed, second.tokens_read) == (False, len(second.passage.token_ids))
    assert stored(lab) == {"exponent_split+zstd", "raw"}


def test_kept_costs_that_lack_a_codec_are_measured_again(
    make_lab: MakeLab, costs: CostModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """These know "raw" alone: a form of unknown speed would never be loaded."""
    measured = []
    monkeypatch.setattr(runtime, "calibrate", lambda _, codecs, __: measured.append(len(codecs)) or costs)
    for codec in ("raw", "raw", "lossless", "lossless"):
        make_lab(tmp_path, codec=codec)
    assert measured == [1, 2, 2]


def test_what_was_stored_safer_is_not_computed_again(make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = make_lab(codec="near-lossless")
    strict(monkeypatch, lab)
    lab.names()
    monkeypatch.undo()
    assert not any(done.computed for done in lab.worker.ingest(lab.caller, "again.txt", ["Aldermoor exports salt."]))


def test_what_was_stored_safer_is_forgotten_with_its_document(make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = make_lab(codec="near-lossless")
    strict(monkeypatch, lab)
    lab.names("a.txt", ["Aldermoor exports salt."])
    lab.worker.forget(lab.caller, "a.txt")
    assert stored(lab) == set()


def test_tables_are_in_the_store_before_what_needs_them(make_lab: MakeLab, tiny: Tiny, tmp_path: Path) -> None:
    """A worker elsewhere, which never saw the calibration, reads what this one stored."""
    namespace = tiny.engine.identity.namespace
    artifacts = Artifacts(namespace, model_folder(tmp_path, namespace) / ARTIFACTS)
    statistics = gather(tiny.engine, random_passages([120, 120]))
    save_statistics(statistics, tiny.engine.identity, artifacts)
    save_probes(statistics.probes, namespace, artifacts)
    lab = make_lab(tmp_path, codec="skvq:k_levels=16,v_levels=16,group=16")
    (stage,) = (stage for stage in lab.worker.pipeline.stages if isinstance(stage, Calibrated))
    names = lab.names()
    assert lab.caller.store.lookup([artifact_key(namespace, stage.subject, stage.artifact)])[0].status is Status.READY
    with closing(stored_chunk(lab, names[0])) as reader:
        codec = bound_pipeline_of(Artifacts(namespace, None, lab.caller.store), reader.manifest.codec)
        assert torch.isfinite(decode_chunk(reader.manifest, map(reader.part, range(2)), codec)[0].k).all()


def test_every_chunk_is_put_with_one_look_at_its_tables(make_lab: MakeLab) -> None:
    """A codec without tables asks for none."""
    lab = make_lab(codec="int8")
    store = Wrapped(lab.caller.store)
    list(lab.worker.ingest(replace(lab.caller, store=store), "a.txt", ["Aldermoor exports salt."]))
    assert len(store.puts) == 1


def test_models_without_crowded_heads_or_biases_need_no_fine_keys(tiny: Tiny) -> None:
    assert not tiny.engine.needs_fine_keys
