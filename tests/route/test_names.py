"""Questions name passages in several ways; reports say which they were."""

from __future__ import annotations

import pytest

from kvclient.records import Passage, PassageReport
from kvworker.route.names import Names

ID = "ab" * 32
OTHER = "cd" * 32


def row(passage: str = ID, n_tokens: int = 10, nbytes: int = 0, tier: str = "") -> PassageReport:
    """Return a passage's part of a report."""
    action = "load" if nbytes else "compute"
    return PassageReport(Passage(passage, "a.txt", 0, n_tokens, ""), action, tier, "", nbytes, 0.0, "", 0)


def test_two_names_of_a_passage_are_one_once_a_report_said_so() -> None:
    """A place in a document, and the start of an identity."""
    names = Names()
    names.learn("alice", ["a.txt#0"], [row(nbytes=500, tier="memory")])
    names.learn("alice", [ID[:8]], [row(nbytes=500, tier="memory")])
    assert names.wanted("alice", ["a.txt#0"]) == names.wanted("alice", [ID[:8]]) == {("alice", ID): 500}


def test_a_name_means_nothing_for_another_tenant() -> None:
    """Each tenant has documents of its own."""
    names = Names()
    names.learn("alice", ["a.txt#0"], [row()])
    assert list(names.wanted("bob", ["a.txt#0"])) == [("bob", "a.txt#0")]


def test_a_place_that_was_edited_stands_for_the_new_passage() -> None:
    """The latest report counts."""
    names = Names()
    names.learn("alice", ["a.txt#0"], [row()])
    names.learn("alice", ["a.txt#0"], [row(OTHER)])
    assert list(names.wanted("alice", ["a.txt#0"])) == [("alice", OTHER)]


def test_a_computed_passage_is_taken_to_be_as_large_as_others_of_its_length() -> None:
    """Nothing was read of it, so its size is not reported."""
    names = Names()
    for _ in range(100):
        names.learn("alice", ["a.txt#0"], [row(n_tokens=10, nbytes=20_000, tier="memory")])
    learned = names.learn("alice", ["b.txt#0"], [row(OTHER, n_tokens=5)])
    assert learned[("alice", OTHER)] == pytest.approx(10_000, rel=0.01)


def test_the_number_of_names_is_bounded() -> None:
    """The oldest are forgotten."""
    names = Names(most_names=2)
    names.learn("alice", ["a#0", "a#1", "a#2"], [row(), row(), row()])
    assert list(names.wanted("alice", ["a#0"])) == [("alice", "a#0")]
    assert list(names.wanted("alice", ["a#2"])) == [("alice", ID)]
