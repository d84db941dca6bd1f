"""What a worker is thought to hold stays within what it can hold."""

from __future__ import annotations

from kvworker.route.holdings import Holdings


def key(n: int) -> tuple[str, str]:
    """Return the key of a passage."""
    return "alice", f"{n:064x}"


def test_the_least_recently_used_leave_first() -> None:
    """As they do in the worker's device tier."""
    held = Holdings(100)
    held.add({key(0): 40, key(1): 40})
    held.add({key(0): 40})
    held.add({key(2): 40})
    assert held.of([key(0), key(1), key(2)]) == {key(0): 40, key(2): 40}


def test_what_is_larger_than_everything_is_not_held_and_drives_nothing_out() -> None:
    """The worker's tier refuses it too."""
    held = Holdings(100)
    held.add({key(0): 100})
    held.add({key(1): 101})
    assert held.of([key(0), key(1)]) == {key(0): 100}


def test_a_passage_of_another_size_counts_once() -> None:
    """It was stored in another codec meanwhile."""
    held = Holdings(100)
    held.add({key(0): 60})
    held.add({key(0): 30, key(1): 70})
    assert held.of([key(0), key(1)]) == {key(0): 30, key(1): 70}


def test_the_number_of_passages_is_bounded_too() -> None:
    """Passages without bytes take memory here all the same."""
    held = Holdings(100, most_passages=3)
    held.add({key(n): 0 for n in range(5)})
    assert list(held.of(key(n) for n in range(5))) == [key(2), key(3), key(4)]


def test_a_worker_that_started_anew_holds_nothing() -> None:
    """And has all its room."""
    held = Holdings(100)
    held.add({key(0): 100})
    held.clear()
    held.add({key(1): 100})
    assert held.of([key(0), key(1)]) == {key(1): 100}
