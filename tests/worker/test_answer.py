"""Answers over stored passages are those of a full prefill, whatever the store does, and the report says what was done."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest

from kvstore.core.api import Scope, Status
from kvstore.core.errors import (
    InvalidInputError,
    KVError,
    NotFoundError,
    TierUnavailableError,
)
from kvstore.core.key import ChunkKey
from kvstore.planners.linear import LinearCost
from kvstore.planners.samples import Manner
from kvworker.answer import job
from kvworker.answer.answer import Question
from kvworker.answer.execute import SOONER
from kvworker.engine.sampling import Sampling
from kvworker.serve.runtime import Caller
from tests.worker.lab import (
    QUESTION,
    TEXTS,
    FailingLookup,
    Lab,
    Wrapped,
)
from tests.worker.waiting import until

PLANNERS = ("always_compute", "always_load", "min_cost")
POLICIES = ("none", "all", "first_k", "first_k:k=2", "first_k:k=1000")


@pytest.mark.parametrize("planner", PLANNERS)
def test_recomputing_all_rows_answers_like_a_full_prefill(lab: Lab, planner: str) -> None:
    """The order is one that was never read."""
    names = lab.names()[::-1]
    assert lab.ask(names, policy="all", planner=planner).token_ids == lab.expected(names)


@pytest.mark.parametrize("policy", POLICIES)
def test_computing_everything_answers_like_a_full_prefill(lab: Lab, policy: str) -> None:
    """A policy repairs what is loaded, and nothing is."""
    names = lab.names()[::-1]
    answer = lab.ask(names, policy=policy, planner="always_compute")
    assert answer.token_ids == lab.expected(names)
    assert answer.report.quality == "exact"


@pytest.mark.parametrize("policy", POLICIES)
def test_a_document_in_its_own_order_answers_like_a_full_prefill(lab: Lab, policy: str) -> None:
    """Each passage was read behind exactly what stands before it, so every stored row is exact and repairs change nothing."""
    names = lab.names()
    answer = lab.ask(names, policy=policy)
    assert answer.token_ids == lab.expected(names)
    if policy != "all":  # which computes every row, so a chunk may not have arrived when it is done
        assert {row.action for row in answer.report.passages} == {"load"}


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_passage_twice_in_a_context_is_answered(lab: Lab, policy: str) -> None:
    """One chunk, two places."""
    (name,) = lab.names(texts=TEXTS[:1])
    answer = lab.ask([name, name], policy=policy)
    assert [row.passage.id for row in answer.report.passages] == [name, name]
    if policy in ("all", "first_k:k=1000"):
        assert answer.token_ids == lab.expected([name, name])


def test_a_question_without_passages_is_answered_behind_bos(lab: Lab) -> None:
    """The prompt is the question alone."""
    ids = [lab.tiny.engine.bos_id or 0, *lab.tiny.engine.encode(QUESTION)]
    assert lab.ask([]).token_ids == lab.tiny.greedy(ids, 6)


def test_the_second_question_finds_decoded_copies_on_the_device(lab: Lab) -> None:
    """Nothing is read from the store again."""
    names = lab.names()
    store = Wrapped(lab.caller.store)
    lab.ask(names, store, policy="none")
    assert len(store.gets) == len(names)
    answer = lab.ask(names, store, policy="none")
    assert [row.tier for row in answer.report.passages] == ["device"] * 3
    assert len(store.gets) == len(names)
    assert answer.token_ids == lab.expected(names)


def test_a_device_copy_is_used_while_the_store_does_not_answer(lab: Lab) -> None:
    """What this worker decoded and verified stays right."""
    names = lab.names()
    lab.ask(names, policy="none")
    answer = lab.ask(names, FailingLookup(lab.caller.store, TierUnavailableError("no answer")), policy="none")
    assert [row.tier for row in answer.report.passages] == ["device"] * 3
    assert answer.token_ids == lab.expected(names)


def test_another_tenant_never_gets_a_device_copy(lab: Lab) -> None:
    """Not even faster: a hit would tell that somebody else has the text."""
    names = lab.names()
    lab.ask(names, policy="none")
    bob = Lab(lab.tiny, lab.worker, lab.service, Caller("bob", lab.service.bind("bob")))
    with pytest.raises(NotFoundError):
        bob.ask(names)
    bob.names("b.txt")
    answer = bob.ask(names, policy="none")
    assert "device" not in {row.tier for row in answer.report.passages}
    assert answer.report.passages[0].passage.source == "b.txt"


@pytest.mark.parametrize("scope", ["tenant", "model", "source"])
def test_an_invalidated_chunk_is_not_used_from_the_device_either(lab: Lab, scope: str) -> None:
    """Invalidating says: do not use this any more, wherever it is."""
    names = lab.names()
    lab.ask(names, policy="none")
    values = {"tenant": "", "model": lab.tiny.engine.identity.namespace.hex(), "source": "a.txt"}
    lab.caller.store.invalidate(Scope(scope, values[scope]))
    answer = lab.ask(names, policy="none")
    assert {row.action for row in answer.report.passages} == {"compute"}
    assert all("epoch" in row.why for row in answer.report.passages)
    assert answer.token_ids == lab.expected(names)


def test_a_deleted_chunk_is_not_used_from_the_device_either(lab: Lab) -> None:
    """Deleting is explicit, unlike evicting."""
    names = lab.names()
    lab.ask(names, policy="none")
    lab.caller.store.delete(lab.keys(names)[:1])
    answer = lab.ask(names, policy="none")
    assert [row.action for row in answer.report.passages] == ["compute", "load", "load"]


def test_a_missing_chunk_is_stored_again_behind_the_answer(lab: Lab) -> None:
    """The chunk of a later passage of a document is computed behind the earlier ones, as it was at first."""
    names = lab.names()
    keys = lab.keys(names)
    before = [values_of(lab, key) for key in keys]
    lab.caller.store.delete(keys)
    lab.ask(names)
    until(lambda: all(hit.status is Status.READY for hit in lab.caller.store.lookup(keys)))
    for key, values in zip(keys, before, strict=True):
        np.testing.assert_allclose(values_of(lab, key), values, rtol=0, atol=1e-4)


def values_of(lab: Lab, key: ChunkKey) -> npt.NDArray[np.float32]:
    """Return all values in the last part of a stored raw chunk."""
    reader = lab.caller.store.get(key)
    assert reader is not None
    return np.frombuffer(reader.part(len(reader.manifest.parts) - 1), dtype=np.float32).copy()


def test_nothing_is_stored_again_while_the_store_does_not_answer(lab: Lab) -> None:
    """A store that is down is left alone."""
    names = lab.names()
    store = FailingLookup(lab.caller.store, TierUnavailableError("no answer"))
    lab.ask(names, store)
    lab.worker._restorer.close()
    assert not store.puts


@pytest.mark.parametrize(
    ("names", "fields", "error"),
    [
        (["0123456789"], {}, NotFoundError),
        (["nobody.txt#0"], {}, NotFoundError),
        (["a.txt#99999999999999999999999999"], {}, InvalidInputError),
        (["no name at all"], {}, InvalidInputError),
        ([""], {}, InvalidInputError),
        (["a.txt#0"], {"policy": "magic"}, InvalidInputError),
        (["a.txt#0"], {"policy": "first_k:k=0"}, InvalidInputError),
        (["a.txt#0"], {"policy": "first_k:depth=3"}, InvalidInputError),
        (["a.txt#0"], {"planner": "magic"}, InvalidInputError),
        (["a.txt#0"], {"planner": "../cost"}, InvalidInputError),
        (["a.txt#0"], {"text": ""}, InvalidInputError),
        (["a.txt#0"], {"sampling": Sampling(max_new_tokens=1025)}, InvalidInputError),
        (["a.txt#0"] * 30, {}, InvalidInputError),
    ],
)
def test_what_can_not_be_answered_is_refused_by_a_typed_error(
    lab: Lab, names: list[str], fields: dict[str, object], error: type[KVError]
) -> None:
    """Before anything is computed or fetched."""
    lab.names()
    store = Wrapped(lab.caller.store)
    with pytest.raises(error):
        lab.ask(names, store, **fields)  # type: ignore[arg-type]
    assert not store.gets


def test_a_prompt_that_is_too_long_is_refused_with_the_numbers(lab: Lab) -> None:
    """Whoever asked can tell how much to leave out."""
    lab.names()
    with pytest.raises(InvalidInputError, match=r"has 7\d\d tokens.* reads 512"):
        lab.ask(["a.txt#0"] * 30)


def test_concurrent_questions_get_their_own_answers(lab: Lab) -> None:
    """Four threads, other orders and planners, one engine."""
    names = lab.names()
    orders = [names, names[::-1], names[1:], names[:1]]
    expected = [lab.expected(order) for order in orders]

    def ask(i: int) -> list[int]:
        return lab.ask(orders[i % 4], policy="all", planner=PLANNERS[i % 3]).token_ids

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(ask, range(24))) == [expected[i % 4] for i in range(24)]


def test_asking_while_reports_are_read_never_fails(lab: Lab) -> None:
    """Explaining walks over the reports that other threads append to."""
    (name, *_) = lab.names()
    stop = threading.Event()

    def explain() -> int:
        n = 0
        while not stop.is_set():
            with pytest.raises(NotFoundError):
                lab.worker.explain("alice", "no such request")
            n += 1
        return n

    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(explain) for _ in range(2)]
        for _ in range(20):
            lab.ask([name])
        stop.set()
        assert all(future.result() for future in futures)


def test_an_abandoned_answer_leaves_no_lock_held(lab: Lab) -> None:
    """A client that goes away in the middle must not stop the next one."""
    names = lab.names()
    question = Question(names, QUESTION, Sampling(max_new_tokens=500))
    left = lab.worker.ask(lab.caller, question)
    next(left)
    assert lab.ask(names).token_ids == lab.expected(names)
    left.close()  # type: ignore[attr-defined]
    assert lab.ask(names).token_ids == lab.expected(names)


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("policy", POLICIES)
def test_the_numbers_of_a_report_add_up(lab: Lab, planner: str, policy: str) -> None:
    """Every row of the prompt was loaded or computed, and the steps fill the time to the first token."""
    names = lab.names()
    report = lab.ask(names, policy=policy, planner=planner).report
    n_prompt = len(lab.prompt_ids(names))
    assert report.tokens_loaded + report.tokens_recomputed == n_prompt
    for row in report.passages:
        assert row.rows_recomputed <= row.passage.n_tokens
        assert (row.action == "compute") == (row.tier == "" and row.nbytes == 0 and row.rows_recomputed == row.passage.n_tokens)
        if row.action == "load" and policy not in ("all", "first_k:k=1000"):
            assert row.nbytes > 0
            assert row.seconds > 0
    assert sum(report.ttft_split_s.values()) <= report.ttft_s
    assert min(report.ttft_split_s.values()) >= 0
    assert report.tokens_generated == len(lab.expected(names))


def test_waiting_for_another_question_is_not_counted_as_prefill(lab: Lab) -> None:
    """The steps of a report add up to the time to the first token, the wait for the model among them."""
    names = lab.names()
    lock = lab.worker._answerer._lock
    with ThreadPoolExecutor(1) as threads, lock:
        future = threads.submit(lab.ask, names, None, "all", "always_compute")
        time.sleep(0.3)  # the wait itself is what is measured
        lock.release()
        report = future.result().report
        lock.acquire()
    assert report.ttft_split_s["queue"] > 0.2
    assert report.ttft_split_s["prefill"] < report.ttft_split_s["queue"]
    assert sum(report.ttft_split_s.values()) == pytest.approx(report.ttft_s, abs=0.05)


@pytest.mark.parametrize(
    ("planner", "learned"),
    [("always_compute", {"pass whole", "outcome computed"}), ("always_load", {"pass last", "outcome loaded"})],
)
def test_a_request_teaches_what_passes_and_requests_of_its_kind_take(lab: Lab, planner: str, learned: set[str]) -> None:
    """Whatever else was measured stays: what a pass over everything takes says little about one that lands chunks."""
    names, costs = lab.names(), lab.worker.costs
    lab.ask(names, policy="none", planner=planner)  # learns what reading takes, so that the next one is predicted
    before = costs.model.costs
    lab.ask(names, policy="none", planner=planner)
    changed = {subject for subject, cost in costs.model.costs.items() if cost != before.get(subject)}
    assert {subject for subject in changed if not subject.startswith("tier ")} == learned


def test_a_race_teaches_what_races_take(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where computing takes a second a row, all is loaded, and the race is over before it computes anything but the question."""
    names, costs = lab.names(), lab.worker.costs
    lab.ask(names, policy="none")  # learns what reading takes
    costs._model = replace(costs.model, costs={**costs.model.costs, "prefill": LinearCost((0.0, 1.0, 0.0))})
    monkeypatch.setattr(job, "is_worth_racing", lambda *_: True)
    lab.ask(names, policy="none", planner="min_cost")
    assert "outcome raced" in costs.model.costs


@pytest.mark.parametrize(("failure", "is_learned"), [(SOONER, True), ("timeout", False), ("digest", False)])
def test_a_request_whose_loads_failed_teaches_nothing_about_plans(lab: Lab, failure: str, is_learned: bool) -> None:
    """A race in which a chunk was computed before it came went as races do."""
    course = SimpleNamespace(
        samples=[],
        last_step=None,
        sources={},
        timing=SimpleNamespace(ttft_s=1.0, seconds={}),
        planned_s=0.5,
        manner=Manner.RACED,
        failures={0: failure},
    )
    lab.worker._answerer._learn("alice", course)  # type: ignore[arg-type]
    assert ("outcome raced" in lab.worker.costs.model.costs) is is_learned


def test_a_report_can_be_asked_for_again_by_its_own_tenant_only(lab: Lab) -> None:
    """The latest request by default."""
    names = lab.names()
    first, second = lab.ask(names).report, lab.ask(names[:1]).report
    assert lab.worker.explain("alice").report == second
    assert lab.worker.explain("alice", first.request_id).report == first
    with pytest.raises(NotFoundError):
        lab.worker.explain("bob")


def test_a_passage_named_by_its_place_is_reported_under_that_place(lab: Lab) -> None:
    """The same text may belong to two documents."""
    lab.names("a.txt")
    lab.names("b.txt")
    (row,) = lab.ask(["b.txt#0"]).report.passages
    assert (row.passage.source, row.passage.index) == ("b.txt", 0)


def test_a_report_is_stable_text(lab: Lab) -> None:
    """The text of the answer is what the tokens decode to."""
    names = lab.names()
    answer = lab.ask(names)
    assert answer.text == lab.tiny.engine.decode(answer.token_ids)
