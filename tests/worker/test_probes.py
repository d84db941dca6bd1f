"""Tiers that plans pass over are read now and then, so that a wrong idea of their speed does not last."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from kvstore.planners.linear import LinearCost
from kvworker.answer import probes
from tests.worker.conftest import MakeLab
from tests.worker.lab import FailingGet, Lab, Wrapped
from tests.worker.waiting import until

HOPELESS = LinearCost((1e6, 1e3), 0.01, 50)


def hopeless_lab(make_lab: MakeLab) -> Lab:
    """Return a worker that takes its memory tier to be slower than anything; decoded copies are off."""
    lab = make_lab(policy="none", planner="min_cost", device_bytes=0)
    book = lab.worker.costs
    book._model = replace(book.model, costs={**book.model.costs, "tier memory": HOPELESS})
    return lab


def predicted_s(lab: Lab) -> float:
    """Return what the worker thinks that reading a kilobyte from memory takes."""
    return lab.worker.costs.model.costs["tier memory"].predict((1.0, 1024.0))


def test_a_tier_that_was_called_hopeless_is_read_until_it_is_known(make_lab: MakeLab) -> None:
    """Nothing is loaded from it, and a chunk is read behind every answer, as long as reads are quicker than predicted."""
    lab = hopeless_lab(make_lab)
    names = lab.names()
    for _ in range(3):
        before = predicted_s(lab)
        report = lab.ask(names[::-1], policy="", planner="").report
        assert {row.action for row in report.passages} == {"compute"}
        until(lambda before=before: predicted_s(lab) < before / 1.5, timeout_s=5)  # type: ignore[misc]


def test_one_answer_in_sixteen_probes_what_is_known_to_be_slow(make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads that nobody needs stay rare, once they take what was predicted."""
    monkeypatch.setattr(probes, "_SURPRISE", math.inf)
    lab = hopeless_lab(make_lab)
    names, store = lab.names(), Wrapped(lab.caller.store)
    for _ in range(17):
        lab.ask(names[::-1], store, policy="", planner="")
    until(lambda: len(store.gets) == 2, timeout_s=5)


def test_a_probe_that_fails_disturbs_nobody(make_lab: MakeLab) -> None:
    """The tier stays what it was, and the next question is answered."""
    lab = hopeless_lab(make_lab)
    names, before = lab.names(), predicted_s(lab)
    store = FailingGet(lab.caller.store, RuntimeError("broken"))
    answers = [lab.ask(names, store, policy="", planner="").token_ids for _ in range(2)]
    assert answers == [lab.expected(names)] * 2
    assert predicted_s(lab) == before
    assert lab.worker._loader._flights == {}


def test_a_planner_that_does_not_go_by_costs_has_nothing_probed(make_lab: MakeLab) -> None:
    """Who wants everything computed does not want the store read."""
    lab = hopeless_lab(make_lab)
    names, store = lab.names(), Wrapped(lab.caller.store)
    lab.ask(names, store, planner="always_compute")
    assert store.gets == []
