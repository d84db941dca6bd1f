"""What a worker counts of its requests, and how it is exported and shown."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from kvclient.records import Passage, PassageReport, Report
from kvstore.server.observe.families import Families
from kvworker.answer.answer import Question
from kvworker.serve.ledger import KEPT_REQUESTS, Ledger
from kvworker.serve.worker_source import PASSAGES, PLANS, REQUESTS, TOKENS, WORKER_METRICS, WorkerSource, why_slow
from tests.worker.lab import QUESTION, Lab

SPLIT = {"lookup": 0.01, "plan": 0.0, "queue": 0.0, "load": 0.06, "prefill": 0.03}


def loaded(tier: str = "memory") -> PassageReport:
    """Return a passage that was loaded."""
    return PassageReport(Passage("id", "a.txt", 0, 10, "text"), "load", tier, "raw", 640, 0.01, "sooner", 2)


def computed(reason: str) -> PassageReport:
    """Return a passage that was computed."""
    return PassageReport(Passage("id", "a.txt", 1, 10, "text"), "compute", "", "", 0, 0.0, f"because of {reason}", 10, reason=reason)


def report(
    *rows: PassageReport, ttft_s: float = 0.1, request: str = "r", split: Mapping[str, float] = SPLIT, predicted_s: float = 0.08
) -> Report:
    """Return a report over passages."""
    return Report(request, rows, "min_cost", "none", split, ttft_s, predicted_s, 8, 12, 3, "exact")


def exported(ledger: Ledger, most_tenants: int = 8) -> Families:
    """Return the values of one scrape."""
    out = Families()
    WorkerSource(ledger, lambda: (1, 2), most_tenants).metrics(out)
    return out


def test_requests_tokens_and_passages_add_up() -> None:
    """By tenant, and by what became of passages."""
    ledger = Ledger()
    ledger.record("alice", report(loaded(), computed("evicted")))
    ledger.record("alice", report(loaded("disk"), computed("evicted")))
    ledger.record("bob", report(computed("chosen")))
    out = exported(ledger)
    assert out.values(REQUESTS) == {("alice",): 2, ("bob",): 1}
    assert out.values(TOKENS)["loaded", "alice"] == 16
    assert out.values(PASSAGES) == {("load", "memory"): 1, ("load", "disk"): 1, ("compute", "evicted"): 2, ("compute", "chosen"): 1}
    assert out.values(PLANS) == {("none", "min_cost"): 3}


def test_every_metric_of_a_worker_is_exported_once_it_answered() -> None:
    """Panels and alerts name them."""
    ledger = Ledger()
    ledger.record("alice", report(loaded()))
    names = {family.name for family in exported(ledger).export()}
    assert names == {metric.name.removesuffix("_total") for metric in WORKER_METRICS}


def test_policies_that_callers_make_up_share_a_label() -> None:
    """A question may name any."""
    ledger = Ledger()
    for k in range(100):
        ledger.record("alice", Report("r", (), "min_cost", f"first_k:k={k}", SPLIT, 0.1, 0.1, 1, 1, 1, "exact"))
    plans = exported(ledger).values(PLANS)
    assert len(plans) == 17
    assert plans["other", "min_cost"] == 84


def test_the_slowest_requests_say_why() -> None:
    """What most of the time went to, and what was missing."""
    ledger = Ledger(lambda: 5.0)
    ledger.record("alice", report(loaded(), ttft_s=0.1, request="quick"))
    ledger.record("bob", report(loaded(), computed("evicted"), ttft_s=0.4, request="slow"))
    rows = WorkerSource(ledger, lambda: (0, 0), 8).panel()["slowest"]
    assert [row["request"] for row in rows] == ["slow", "quick"]
    assert rows[0]["why"] == "15 % load: it waited for chunks to arrive; 1 of 2 passages computed (evicted)"
    assert rows[0]["passages"][1] == "a.txt#1: compute : because of evicted"


@pytest.mark.parametrize("step", ["lookup", "plan", "queue", "load", "prefill"])
def test_every_step_has_words_for_its_slowness(step: str) -> None:
    """A name alone says little to a stranger."""
    text = why_slow(report(split={step: 0.1}))
    assert text.startswith(f"100 % {step}: ")
    assert len(text) > 20


def test_predictions_are_compared_with_what_came() -> None:
    """As a share of it; a request without a prediction counts for nothing."""
    ledger = Ledger()
    ledger.record("alice", report(ttft_s=0.1, predicted_s=0.083))
    ledger.record("alice", report(ttft_s=0.1, predicted_s=0.0))
    assert ledger.ratio.snapshot() == ([0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1], pytest.approx(0.1 / 0.083))
    assert ledger.error.quantile(0.5) == 0.2


def test_only_the_last_requests_are_kept() -> None:
    """The sums go on."""
    ledger = Ledger()
    for _ in range(KEPT_REQUESTS + 5):
        ledger.record("alice", report(loaded()))
    assert len(ledger.latest()) == KEPT_REQUESTS
    assert ledger.tenants()["alice"].requests == KEPT_REQUESTS + 5


def test_a_worker_counts_the_requests_it_answers(lab: Lab) -> None:
    """From the report that the caller gets."""
    lab.ask(lab.names())
    (answered,) = lab.worker.ledger.latest()
    assert answered.tenant == "alice"
    assert answered.report.ttft_s > 0
    assert lab.worker.ledger.n_running == 0


def test_a_request_that_is_left_early_is_not_running_any_more(lab: Lab) -> None:
    """A client that went away."""
    events = lab.worker.ask(lab.caller, Question(lab.names(), QUESTION))
    next(events)
    assert lab.worker.ledger.n_running == 1
    events.close()  # type: ignore[attr-defined]
    assert lab.worker.ledger.n_running == 0
