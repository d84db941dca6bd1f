"""Timing of one request, and what its report says."""

from __future__ import annotations

import threading
import time

import pytest

from kvworker.answer.course import Timing

STEPS = {"lookup", "plan", "queue", "load", "prefill"}


def test_steps_that_never_ran_took_no_time() -> None:
    """All are named nonetheless."""
    assert Timing().split() == dict.fromkeys(STEPS, 0.0)


def test_waiting_for_chunks_is_taken_out_of_prefill() -> None:
    """The two together are the pass."""
    timing = Timing()
    timing.seconds.update(lookup=1.0, plan=2.0, queue=3.0, prefill=4.0)
    timing.wait_s = 1.5
    assert timing.split() == {"lookup": 1.0, "plan": 2.0, "queue": 3.0, "load": 1.5, "prefill": 2.5}


def test_no_step_takes_less_than_nothing() -> None:
    """Several sources may wait for the same time."""
    timing = Timing()
    timing.seconds["prefill"], timing.wait_s = 1.0, 5.0
    assert timing.split()["load"] == 1.0
    assert timing.split()["prefill"] == 0.0


def test_a_step_that_runs_twice_counts_twice_also_when_it_fails() -> None:
    """A failed pass was time spent."""
    timing = Timing()
    with timing.measure("prefill"):
        time.sleep(0.01)
    once = timing.seconds["prefill"]
    with pytest.raises(ZeroDivisionError), timing.measure("prefill"):
        raise ZeroDivisionError
    assert timing.seconds["prefill"] > once >= 0.01


def test_the_lock_is_free_again_whatever_happens_under_it() -> None:
    """And the time under it is not time in the queue."""
    timing, lock = Timing(), threading.Lock()

    def fail() -> None:
        with timing.queue(lock):
            time.sleep(0.1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not lock.locked()
    assert timing.seconds["queue"] < 0.1
