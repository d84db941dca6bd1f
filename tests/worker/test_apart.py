"""Passages read apart answer alike whether the store has them or not, and are not called exact."""

from __future__ import annotations

import pytest

from kvstore.core.errors import InvalidInputError
from tests.worker.lab import TEXTS, Lab
from tests.worker.waiting import until


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
