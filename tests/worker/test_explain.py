"""Explanations: what was found, weighed, decided and done, for the tenant whose request it was, for as long as it is kept."""

from __future__ import annotations

import pytest

from kvclient.records import AnswerExplanation, Report
from kvstore.core.errors import NotFoundError, TierUnavailableError
from kvworker.answer import explain
from kvworker.answer.explain import Explanations
from tests.worker.conftest import MakeLab
from tests.worker.lab import FailingGet, Lab


def explanation(request_id: str, n_lines: int = 1) -> AnswerExplanation:
    """Return what is kept of a request."""
    report = Report(request_id, (), "min_cost", "none", {}, 0.1, 0.1, 0, 1, 1, "exact")
    return AnswerExplanation(report, ("why",) * n_lines)


def test_an_explanation_says_what_was_found_weighed_and_done(make_lab: MakeLab) -> None:
    """Five lines on the request, one per passage: hits and costs in, the plan, prediction and outcome."""
    lab = make_lab(device_bytes=0)
    names = lab.names()
    lab.ask(names, policy="none")  # measures what reading takes
    report = lab.ask([*names[1:], "a.txt#0"], policy="none").report
    lines = lab.worker.explain("alice", report.request_id).lines
    assert len(lines) == 5 + 3
    assert lines[0].startswith(f"request {report.request_id}: planner always_load, policy none, quality ")
    assert lines[1].startswith("costs: prefill ")
    assert "; tier memory " in lines[1]
    assert lines[1].count(" samples, off by ") == 2
    assert lines[2].startswith("plan: loads 3 of 3 passages, first token predicted after ")
    assert lines[3].startswith("time to first token: predicted ")
    assert lines[3].endswith(" %")
    assert lines[4].startswith("of it: lookup ")
    assert lines[7].startswith(f"a.txt#0 ({names[0][:12]}, ")
    for part in (" tokens): found read as ", " in memory, ", "; plan: loads ", "; then loaded ", " (predicted ", " rows computed again"):
        assert part in lines[7]


def test_an_explanation_says_why_a_passage_was_not_loaded(lab: Lab) -> None:
    """Because it is not stored, because the plan says so, or because its load failed."""
    names = lab.names()
    lab.caller.store.delete(lab.keys(names[:1]))
    lab.ask(names, planner="always_compute")
    lost, computed = lab.worker.explain("alice").lines[5:7]
    assert "not stored (deleted: it was deleted)" in lost
    assert "; plan: computes " in computed
    assert "this planner never loads" in computed
    lab.ask(names[1:2], store=FailingGet(lab.caller.store, TierUnavailableError("down")), policy="none")
    assert "loading failed" in lab.worker.explain("alice").lines[5]


def test_what_is_explained_is_the_tenants_own() -> None:
    """By id, by its start, or the latest."""
    kept = Explanations()
    for tenant, request_id in (("alice", "aa1"), ("alice", "aa2"), ("bob", "bb1")):
        kept.keep(tenant, explanation(request_id))
    assert [kept.find("alice", start).report.request_id for start in ("", "aa1", "aa")] == ["aa2", "aa1", "aa2"]
    with pytest.raises(
        NotFoundError, match=r"no request 'bb1' is known here: a worker keeps the last 256.*of yours it has 2, the latest is aa2"
    ):
        kept.find("alice", "bb1")


def test_a_tenant_without_requests_is_told_nothing_of_others() -> None:
    """Neither ids nor how many there are."""
    kept = Explanations()
    kept.keep("bob", explanation("bb1"))
    with pytest.raises(NotFoundError, match="no request of yours is known here") as error:
        kept.find("alice")
    assert "bb1" not in str(error.value)


def test_a_long_id_is_not_repeated_in_full() -> None:
    """Whoever sends a megabyte does not get it back."""
    with pytest.raises(NotFoundError) as error:
        Explanations().find("alice", "x" * 1_000_000)
    assert len(str(error.value)) < 200


def test_the_oldest_requests_are_forgotten() -> None:
    """256 of each tenant, whatever the others do."""
    kept = Explanations()
    for number in range(300):
        kept.keep("alice", explanation(f"a{number:03}"))
    kept.keep("bob", explanation("b"))
    assert kept.find("alice", "a044").report.request_id == "a044"
    with pytest.raises(NotFoundError, match="of yours it has 256"):
        kept.find("alice", "a043")


def test_who_asks_about_thousands_of_passages_forgets_sooner_than_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by lines too, and it is whoever takes most that loses."""
    monkeypatch.setattr(explain, "KEPT_LINES", 100)
    kept = Explanations()
    kept.keep("bob", explanation("b", 10))
    for number in range(5):
        kept.keep("alice", explanation(f"a{number}", 40))
    assert kept.find("bob").report.request_id == "b"
    assert kept.find("alice", "a3").report.request_id == "a3"
    with pytest.raises(NotFoundError):
        kept.find("alice", "a2")
    kept.keep("alice", explanation("huge", 1000))
    assert kept.find("bob").report.request_id == "b"
