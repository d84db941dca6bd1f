"""A worker that stores passages without the channels that their own queries leave unused: configured as any other codec."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

from kvstore.core.blob import part_fields
from kvstore.core.key import Kind
from kvworker.chunk import PassageKV
from kvworker.engine.engine import N_PROBES
from kvworker.methods.transform.think_queries import ThinkQueries
from tests.engine.prompts import Tiny
from tests.worker.conftest import MakeLab

CODEC = "think_queries:drop=40+raw"
TEXTS = ["Aldermoor exports salt.", "It lies by the sea."]


def masks(kv: PassageKV, tiny: Tiny) -> list[bytes]:
    """Return the masks that the codec chooses."""
    specs = zip(kv, tiny.engine.identity.layout.groups, strict=True)
    return [
        ThinkQueries(40).apply(chunk, replace(chunk.spec, layers=group.layers))[1]["think_queries.mask"].numpy().tobytes()
        for chunk, group in specs
    ]


def test_what_is_ingested_is_masked_by_the_queries_of_each_passage(make_lab: MakeLab, tiny: Tiny) -> None:
    lab = make_lab(codec=CODEC)
    names = lab.names("talk.txt", TEXTS)
    (passage, key) = lab.worker.resolve(lab.caller, names)[1]
    assert passage.kind is Kind.DOCUMENT
    first = lab.worker.resolve(lab.caller, names)[0][0]
    (_, kv) = tiny.engine.export([first.token_ids, passage.token_ids], n_observed=N_PROBES)
    reader = lab.caller.store.get(key)
    assert reader is not None
    with closing(reader):
        parts = enumerate(reader.manifest.parts)
        stored = [bytes(part_fields(part, reader.part(n))["think_queries.mask"]) for n, part in parts]
    assert stored == masks(kv, tiny)
    assert stored != masks(tuple(replace(chunk, asked=None) for chunk in kv), tiny)


def test_such_passages_are_loaded_without_any_artifact(make_lab: MakeLab) -> None:
    lab = make_lab(codec=CODEC)
    names = lab.names("talk.txt", TEXTS)
    report = lab.ask(names, planner="always_load", policy="none").report
    assert {(p.action, p.variant) for p in report.passages} == {("load", "think_queries+raw")}
