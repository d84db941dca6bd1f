"""Windows of long documents: every passage is stored once, and what came shortly before stays known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.core.errors import InvalidInputError
from kvworker.ingest.windows import Window, document_windows

LIMIT = 64
LENGTHS = st.lists(st.one_of(st.integers(1, LIMIT), st.sampled_from([1, LIMIT // 2, LIMIT // 2 + 1, LIMIT - 1, LIMIT])), max_size=40)


@given(LENGTHS)
def test_every_passage_is_new_in_exactly_one_window_and_in_order(lengths: list[int]) -> None:
    """A passage stored twice would be computed twice; one stored never would be lost."""
    stored = [i for window in document_windows(lengths, LIMIT) for i in range(window.first_new, window.stop)]
    assert stored == list(range(len(lengths)))


@given(LENGTHS)
def test_no_window_is_longer_than_the_limit(lengths: list[int]) -> None:
    """The model reads no more at once."""
    assert all(sum(lengths[w.start : w.stop]) <= LIMIT for w in document_windows(lengths, LIMIT))


@given(LENGTHS)
def test_a_window_reaches_back_as_far_as_half_the_limit_allows(lengths: list[int]) -> None:
    """One passage more would be too many, unless the document begins there; what is read again is at most half a window."""
    for window in document_windows(lengths, LIMIT):
        context = sum(lengths[window.start : window.first_new])
        room = min(LIMIT // 2, LIMIT - lengths[window.first_new])
        assert context <= room
        assert window.start == 0 or context + lengths[window.start - 1] > room


@given(LENGTHS)
def test_a_window_ends_only_where_the_next_passage_does_not_fit(lengths: list[int]) -> None:
    """Fewer windows are fewer passes."""
    for window in document_windows(lengths, LIMIT):
        assert window.stop == len(lengths) or sum(lengths[window.start : window.stop + 1]) > LIMIT


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([], []),
        ([1], [Window(0, 0, 1)]),
        ([64], [Window(0, 0, 1)]),
        ([32, 32], [Window(0, 0, 2)]),
        ([32, 33], [Window(0, 0, 1), Window(1, 1, 2)]),  # 32 + 33 do not fit together
        ([32, 32, 1], [Window(0, 0, 2), Window(1, 2, 3)]),
        ([64, 64], [Window(0, 0, 1), Window(1, 1, 2)]),
        ([16, 16, 16, 16, 16], [Window(0, 0, 4), Window(2, 4, 5)]),
    ],
)
def test_boundary_lengths(lengths: list[int], expected: list[Window]) -> None:
    """Where an off-by-one would hide."""
    assert document_windows(lengths, LIMIT) == expected


@pytest.mark.parametrize(("lengths", "index"), [([65], 0), ([3, 0], 1), ([64, 64, 100], 2)])
def test_a_passage_that_can_not_be_read_at_once_is_refused_with_its_place(lengths: list[int], index: int) -> None:
    """Nothing is read of such a document."""
    with pytest.raises(InvalidInputError, match=f"passage {index} has {lengths[index]} tokens but must have 1 to 64"):
        document_windows(lengths, LIMIT)
