"""Requests that make no sense, and the words of a plan."""

from __future__ import annotations

import math

import pytest

from kvstore.core.errors import InvalidInputError
from kvstore.planners.plan import Compute, Load, Offer, PassageAsk, Request, format_s

OFFER = Offer("disk", 3 << 20, b"v", "int8")


@pytest.mark.parametrize("numbers", [(0, 0, 0), (8, -1, 0), (8, 0, -1), (8, 0, 9)])
def test_an_impossible_passage_is_refused(numbers: tuple[int, int, int]) -> None:
    """No tokens, a negative start, fewer than no rows patched, or more rows than it has."""
    n_tokens, start, patch_rows = numbers
    with pytest.raises(InvalidInputError, match="a passage has"):
        PassageAsk(0, n_tokens, start, patch_rows)


def test_passages_that_overlap_are_refused() -> None:
    """Rows would be counted twice."""
    with pytest.raises(InvalidInputError, match="passage 1 starts at row 7, inside what ends at row 8"):
        Request((PassageAsk(0, 8, 0), PassageAsk(1, 8, 7)), 1)


def test_two_passages_with_one_index_are_refused() -> None:
    """Offers are found by index."""
    with pytest.raises(InvalidInputError, match="share an index"):
        Request((PassageAsk(0, 8, 0), PassageAsk(0, 8, 8)), 1)


def test_a_request_computes_at_least_its_last_row() -> None:
    """The last row gives the logits of the first token."""
    with pytest.raises(InvalidInputError, match="got 0 question tokens"):
        Request((), 0)


def test_a_prompt_ends_with_its_question() -> None:
    """Gaps between passages count as rows."""
    assert Request((PassageAsk(0, 8, 0), PassageAsk(1, 8, 10)), 4).n_tokens == 22


def test_a_load_says_what_it_costs_and_saves() -> None:
    """The line stands in reports."""
    assert (
        Load(0, OFFER, 4, 2e-3, 0.05).why == "loads 3.0 MiB of int8 from disk in 2 ms, computes 4 rows again and saves 50 ms of computing"
    )


def test_a_load_at_unknown_speed_says_so() -> None:
    """Planners that load whatever is there do this."""
    assert "at a speed that was never measured" in Load(0, OFFER, 4, math.inf, 0.05).why


def test_a_computed_passage_says_what_was_passed_over() -> None:
    """Why is only clear beside the alternative."""
    why = Compute(0, 64, 1e-3, "loading is slower", OFFER, 1.5).why
    assert why == "computes 64 rows in 1 ms: loading is slower (3.0 MiB of int8 from disk takes 1.5 s)"


@pytest.mark.parametrize(("seconds", "text"), [(None, "unknown"), (2.5, "2.5 s"), (0.0123, "12.3 ms"), (4e-6, "4 us"), (0.0, "0 us")])
def test_durations_are_written_for_people(seconds: float | None, text: str) -> None:
    """Three digits and a fitting unit."""
    assert format_s(seconds) == text
