"""Passages read apart answer alike whether the store has them or not, and are not called exact."""

from __future__ import annotations

import pytest

from tests.worker.lab import TEXTS, Lab


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
