"""Whatever a store does, the answer is that of a full prefill, inside a deadline, and the report says why."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from kvstore.core.api import Status
from kvstore.core.errors import (
    CorruptError,
    KVError,
    TierUnavailableError,
)
from kvworker.serve.runtime import Caller
from tests.worker.conftest import MakeLab
from tests.worker.lab import (
    FailingGet,
    FailingLookup,
    HungGet,
    Lab,
    LosingGet,
    LyingGet,
    SlowlyFailingLookup,
    TamperedParts,
    Wrapped,
)
from tests.worker.waiting import until


def dies_behind_the_first_group(index: int, data: memoryview) -> memoryview:
    """Deliver layer group 0 and no other."""
    if index:
        raise TierUnavailableError("the store went away")
    return data


def flips_a_bit(index: int, data: memoryview) -> memoryview:
    """Raise what a reader raises over damaged bytes."""
    raise CorruptError(f"part {index}: the digest does not match")


def cuts_a_byte(index: int, data: memoryview) -> memoryview:
    """Deliver a part that is too short, unverified."""
    return data[:-1]


FAILURES: dict[str, Callable[[Lab, Wrapped], Wrapped]] = {
    "lookup fails": lambda lab, store: FailingLookup(store, TierUnavailableError("no answer")),
    "get fails": lambda lab, store: FailingGet(store, TierUnavailableError("no answer")),
    "get raises what is none of ours": lambda lab, store: FailingGet(store, ZeroDivisionError("a bug")),
    "get raises an error without a text": lambda lab, store: FailingGet(store, KVError()),
    "lost between lookup and get": lambda lab, store: LosingGet(store),
    "hangs": lambda lab, store: HungGet(store),
    "dies between layer groups": lambda lab, store: TamperedParts(store, dies_behind_the_first_group),
    "corrupt": lambda lab, store: TamperedParts(store, flips_a_bit),
    "too short": lambda lab, store: TamperedParts(store, cuts_a_byte),
    "another chunk": lambda lab, store: LyingGet(store, blob_of(lab, store)),
}


def blob_of(lab: Lab, store: Wrapped) -> bytearray:
    """Return the blob of a passage that no test asks for."""
    (passage, key) = lab.worker.resolve(lab.caller, lab.names("other.txt", ["Another thing."]))[0]
    (kv,) = lab.tiny.engine.export([passage.token_ids])
    blob = lab.worker.pipeline.encode(kv, lab.tiny.engine.identity, passage.kind, passage.content)
    assert store.lookup([key])[0].status is Status.READY
    return blob


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failing_store_changes_nothing_in_the_answer(lab: Lab, failure: str) -> None:
    """Never wrong, never down: the answer is the computed one, in bounded time, and the report says why it was computed."""
    names = lab.names()[::-1]
    store = FAILURES[failure](lab, Wrapped(lab.caller.store))
    expected = lab.expected(names)
    started = time.perf_counter()
    answer = lab.ask(names, store, policy="none")
    took_s = time.perf_counter() - started
    if isinstance(store, HungGet):
        store.gate.set()
    assert answer.token_ids == expected
    assert {row.action for row in answer.report.passages} == {"compute"}
    assert all(("loading failed" in row.why) or ("the store lacks it" in row.why) for row in answer.report.passages)
    assert answer.report.tokens_loaded == 0
    assert answer.report.tokens_recomputed == len(lab.prompt_ids(names))
    assert answer.report.quality == "exact"
    assert took_s < 5


def test_one_lost_passage_does_not_stop_the_others_from_being_loaded(lab: Lab) -> None:
    """Passages fail one by one."""
    names = lab.names()
    store = FailingGet(lab.caller.store, TierUnavailableError("no answer"), only=[lab.keys(names)[1]])
    answer = lab.ask(names, store, policy="none")
    assert [row.action for row in answer.report.passages] == ["load", "compute", "load"]
    assert answer.token_ids == lab.expected(names)


def test_a_store_that_hangs_costs_one_wait_and_not_one_per_passage(make_lab: MakeLab) -> None:
    """All chunks share one deadline; once it has passed, whatever has not arrived is computed."""
    lab = make_lab(load_threads=16)
    names = lab.names(texts=[f"Passage number {i}." for i in range(12)])
    store = HungGet(lab.caller.store)
    answer = lab.ask(names, store, policy="none")
    store.gate.set()
    assert answer.token_ids == lab.expected(names)
    assert answer.report.ttft_split_s["load"] > 0.1  # the shortest wait is 0.25 s, counted from before the lookup
    assert answer.report.ttft_split_s["prefill"] < 0.2 + answer.report.ttft_s / 2


def test_a_store_that_hangs_in_lookups_is_not_asked_by_every_question(lab: Lab) -> None:
    """It costs a tenth of the time at most, and is used again when it answers."""
    names = lab.names()
    store = SlowlyFailingLookup(lab.caller.store, 0.3)
    for _ in range(5):
        assert lab.ask(names, store, policy="none").token_ids == lab.expected(names)
    assert store.lookups == 1
    store.is_mended = True
    until(lambda: lab.ask(names, store, policy="none").report.passages[0].action == "load", timeout_s=20)


def test_the_failing_store_of_one_tenant_is_still_asked_for_the_others(lab: Lab) -> None:
    """A token that the store refuses is no outage."""
    names = lab.names()
    bob = Lab(lab.tiny, lab.worker, lab.service, Caller("bob", lab.service.bind("bob")))
    bob.names("b.txt")
    bob.ask(names, SlowlyFailingLookup(bob.caller.store, 0.2), policy="none")
    assert {row.action for row in lab.ask(names, policy="none").report.passages} == {"load"}


def test_a_slow_store_whose_chunks_are_never_needed_does_not_spoil_the_answer(lab: Lab) -> None:
    """With `all` no source is asked, so that the fetch may still be under way when the answer is complete."""
    names = lab.names()
    store = HungGet(lab.caller.store)
    answer = lab.ask(names, store, policy="all")
    store.gate.set()
    assert answer.token_ids == lab.expected(names)


def test_a_fetch_that_was_not_finished_teaches_the_cost_model_nothing(lab: Lab) -> None:
    """A read of 0 s would make the tier look impossibly fast."""
    names = lab.names()
    store = HungGet(lab.caller.store)
    before = lab.worker.costs.model
    lab.ask(names, store, policy="all")
    store.gate.set()
    assert {name: cost for name, cost in lab.worker.costs.model.costs.items() if name.startswith("tier")} == {
        name: cost for name, cost in before.costs.items() if name.startswith("tier")
    }
