"""The controller of requests that are not raced: one wait for everything, then computing. All times are the test's."""

from __future__ import annotations

import pytest

from kvstore.planners.race_events import (
    Abandon,
    Arrived,
    BetweenLayers,
    Cancel,
    Compute,
    Event,
    Failed,
    Fetch,
    Finish,
    StepDone,
    StepStopped,
    Tick,
)
from kvworker.answer.straight import Straight


def begun(*rest: int) -> Straight:
    """Return a controller that has asked for chunks 0, 1 and 2, and finishes."""
    straight = Straight({0: 0, 1: 0, 2: 1}, rest, patience_s=2.0)
    assert straight.handle(Tick(10.0)) == (Fetch(0, 0), Fetch(1, 0), Fetch(2, 1), Finish((0, 1, 2), 12.0))
    return straight


def test_everything_that_comes_in_time_needs_no_further_step() -> None:
    """The last step waits for its layer groups by itself."""
    straight = begun()
    for chunk in range(3):
        assert straight.handle(Arrived(10.5, chunk)) == ()
    assert straight.handle(Tick(12.5)) == ()


def test_without_loads_it_finishes_at_once() -> None:
    """One pass computes all."""
    assert Straight({}, [0, 1], 1.0).handle(Tick(0.0)) == (Finish((), 1.0),)


def test_a_failed_chunk_is_computed_and_the_others_still_waited_for() -> None:
    """The step under way can't do without it."""
    straight = begun()
    assert straight.handle(Failed(10.1, 1)) == (Abandon(),)
    assert straight.handle(StepStopped(10.2)) == (Compute(1, 2),)
    assert straight.handle(BetweenLayers(10.3, 0.5)) == ()
    assert straight.handle(StepDone(10.4)) == (Finish((0, 2), 12.0),)


def test_what_is_late_is_computed_in_one_step() -> None:
    """And is of no use any more when it comes."""
    straight = begun()
    assert straight.handle(Tick(11.9)) == ()
    assert straight.handle(Tick(12.0)) == (Abandon(),)
    assert straight.handle(StepStopped(12.0)) == (Compute(0, 3),)
    assert straight.handle(StepDone(12.5)) == (Cancel(0), Cancel(1), Cancel(2), Finish((), 12.0))


def test_a_late_chunk_that_comes_before_its_turn_is_used() -> None:
    """A store that wakes up is taken back."""
    straight = begun()
    straight.handle(Failed(10.1, 0))
    straight.handle(Tick(12.0))
    assert straight.handle(StepStopped(12.0)) == (Compute(0, 3),)
    straight.handle(Arrived(12.1, 2))
    assert straight.handle(Arrived(12.2, 1)) == ()
    assert straight.handle(StepDone(12.5)) == (Finish((), 12.0),)


def test_a_step_whose_chunks_have_all_come_is_given_up() -> None:
    """Whatever it computes is there already."""
    straight = begun()
    straight.handle(Arrived(10.1, 0))
    straight.handle(Arrived(10.1, 1))
    straight.handle(Tick(12.0))
    assert straight.handle(StepStopped(12.0)) == (Compute(2, 3),)
    assert straight.handle(Arrived(12.1, 2)) == (Abandon(),)
    assert straight.handle(StepStopped(12.2)) == (Finish((), 12.0),)


def test_neighbours_that_are_computed_anyway_go_into_the_same_step() -> None:
    """One pass instead of two."""
    straight = begun(3, 4)
    straight.handle(Failed(10.0, 2))
    assert straight.handle(StepStopped(10.1)) == (Compute(2, 5),)


@pytest.mark.parametrize("event", [Failed(13.0, 1), Arrived(13.0, 1), Tick(13.0)])
def test_a_step_is_given_up_once(event: Event) -> None:
    """Until it has stopped there is nothing more to say."""
    straight = begun()
    assert straight.handle(Tick(12.0)) == (Abandon(),)
    assert straight.handle(event) == ()


def test_a_step_that_waits_for_an_earlier_chunk_is_given_up_when_that_one_fails_too() -> None:
    """Its rows need what lies before them, which never comes now; the engine would be held for ever."""
    straight = begun()
    straight.handle(Failed(10.1, 2))
    assert straight.handle(StepStopped(10.2)) == (Compute(2, 3),)
    assert straight.handle(Failed(10.3, 0)) == (Abandon(),)
    assert straight.handle(StepStopped(10.4)) == (Compute(0, 1),)


def test_a_step_that_waits_for_an_earlier_chunk_is_given_up_when_that_one_is_late() -> None:
    """Both are computed together then."""
    straight = begun()
    straight.handle(Failed(10.1, 2))
    assert straight.handle(StepStopped(10.2)) == (Compute(2, 3),)
    assert straight.handle(Tick(11.9)) == ()
    assert straight.handle(Tick(12.0)) == (Abandon(),)
    assert straight.handle(StepStopped(12.1)) == (Compute(0, 3),)
