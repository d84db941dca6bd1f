"""Recompute policies choose the rows they promise, and are named by a short text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kvstore.core.errors import InvalidInputError
from kvworker.answer.policy import find_policy, parse_policy
from kvworker.engine.engine import Segment, always_computed
from tests.engine.prompts import Lost


def prompt(*pieces: tuple[int, bool]) -> list[Segment]:
    """Return segments of these lengths, stored or not."""
    return [Segment(tuple(range(n)), Lost() if is_stored else None) for n, is_stored in pieces]


@pytest.mark.parametrize(
    ("spec", "rows"),
    [
        ("none", [11, 12]),
        ("all", [*range(13)]),
        ("first_k:k=1", [4, 10, 11, 12]),
        ("first_k:k=2", [4, 5, 10, 11, 12]),
        ("first_k:k=100", [*range(4, 13)]),
        ("first_k", [4, 5, 6, 7, 10, 11, 12]),
    ],
)
def test_a_policy_adds_its_rows_to_those_that_no_source_can_give(spec: str, rows: Sequence[int]) -> None:
    """Three stored passages of 4, 6 and 1 tokens, then a question of 2; the first passage needs no repair."""
    assert parse_policy(spec).select(prompt((4, True), (6, True), (1, True), (2, False))) == list(rows)


def test_a_stored_passage_behind_computed_text_is_repaired_even_if_it_is_the_first_stored_one() -> None:
    """What counts is whether it starts the prompt."""
    assert parse_policy("first_k:k=2").select(prompt((3, False), (5, True), (1, False))) == [0, 1, 2, 3, 4, 8]


def test_the_last_row_is_computed_even_when_it_is_stored() -> None:
    """Its logits are the answer."""
    assert always_computed(prompt((3, True), (5, True))) == [7]


def test_a_prompt_without_segments_is_refused() -> None:
    """There is no last row."""
    with pytest.raises(InvalidInputError, match="at least one segment"):
        always_computed([])


@pytest.mark.parametrize("spec", ["none", "all", "first_k:k=3"])
def test_a_policy_is_written_as_it_was_parsed(spec: str) -> None:
    """Reports and benches name policies by this text."""
    assert parse_policy(spec).spec == spec


def test_parameters_left_out_have_their_defaults() -> None:
    """4: an eighth of a prefill for passages of 64 tokens."""
    assert parse_policy("first_k") == find_policy("first_k", k=4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("first", "no recompute policy 'first'; known: all, .*, first_k, .*none, "),
        ("", "no recompute policy ''"),
        ("first_k:n=1", "policy first_k has no parameter 'n'; known: k"),
        ("none:k=1", "policy none has no parameter 'k'; known: none"),
        ("first_k:k=0", "k must be at least 1, got 0"),
        ("first_k:k=1.5", "k must be of type int, got 1.5"),
        ("first_k:k=many", "k must be of type int, got 'many'"),
        ("first_k:k", "'k' is not of the form parameter=value"),
        ("first_k:k=1,", "'' is not of the form parameter=value"),
    ],
)
def test_a_mistake_is_answered_with_what_is_known(spec: str, message: str) -> None:
    """The text comes from a caller or a configuration."""
    with pytest.raises(InvalidInputError, match=message):
        parse_policy(spec)
