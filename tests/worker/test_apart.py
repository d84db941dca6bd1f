"""Passages read apart answer alike whether the store has them or not, and are not called exact."""

from __future__ import annotations

import pytest

from kvstore.core.errors import InvalidInputError
from tests.worker.lab import QUESTION, TEXTS, Lab
from tests.worker.waiting import until

LINKED = "kv_link:first_id=256,n=1"  # the tiny model's only special tokens, for two passages


@pytest.mark.parametrize("policy", ["segment_mask", "parallel"])
def test_what_the_store_lacks_is_read_as_it_would_have_been_stored(lab: Lab, policy: str) -> None:
    """A passage that is missing must not see its neighbours either."""
    names = tuple(done.passage.content.hex() for done in lab.ingest(texts=TEXTS, read_as="alone"))
    loaded = lab.ask(names, policy=policy, planner="always_load")
    assert {row.action for row in loaded.report.passages} == {"load"}
    computed = lab.ask(names, policy=policy, planner="always_compute")
    assert {row.action for row in computed.report.passages} == {"compute"}
    assert computed.token_ids == loaded.token_ids
    assert not computed.report.quality.startswith("exact")


@pytest.mark.parametrize("policy", ["segment_mask", "parallel"])
def test_what_was_read_in_a_document_is_not_set_apart(lab: Lab, policy: str) -> None:
    """It has seen its neighbours already. It is read by itself for the answer, and stored so behind it."""
    lab.ingest(texts=TEXTS, read_as="document")
    names = ["a.txt#1", "a.txt#2"]
    report = lab.ask(names, policy=policy, planner="always_load").report
    assert {row.action for row in report.passages} == {"compute"}
    until(lambda: {row.read_as for row in lab.ask(names, policy=policy, planner="always_load").report.passages} == {"alone"})


def test_a_question_that_wants_passages_as_in_their_document_is_refused_apart(lab: Lab) -> None:
    """One of the two cannot be."""
    lab.ingest(texts=TEXTS)
    with pytest.raises(InvalidInputError, match="takes them read alone"):
        lab.ask(["a.txt#1"], policy="segment_mask", read_as="document")


@pytest.mark.parametrize("planner", ["always_compute", "min_cost"])
def test_links_are_computed_behind_loaded_and_behind_computed_passages(lab: Lab, planner: str) -> None:
    """The report counts the rows of passages; links are among what was computed."""
    names = tuple(done.passage.content.hex() for done in lab.ingest(texts=TEXTS[:2], read_as="alone"))
    loaded = lab.ask(names, policy=LINKED, planner="always_load")
    assert [(row.action, row.rows_recomputed) for row in loaded.report.passages] == [("load", 0), ("load", 0)]
    assert loaded.report.tokens_recomputed == len(QUESTION) + 2
    assert lab.ask(names, policy=LINKED, planner=planner).token_ids == loaded.token_ids


def test_a_prompt_with_more_passages_than_links_is_refused(lab: Lab) -> None:
    """The third passage of the tiny model has none."""
    lab.ingest(texts=TEXTS, read_as="alone")
    with pytest.raises(InvalidInputError, match="token 258 is no special token"):
        lab.ask([f"a.txt#{i}" for i in range(3)], policy=LINKED)
