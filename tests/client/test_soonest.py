"""Who answers first is heard, and the other one is told to stop."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from kvclient._sync.soonest import Begun, Soonest
from kvclient.usual import Usual
from kvstore.core.errors import DeadlineError, InvalidInputError, KVError, TierUnavailableError


class Call:
    """A call that says its messages once it may; cancelling it is noted."""

    def __init__(self, *messages: str, failing: KVError | None = None) -> None:
        self._messages, self._failing = messages, failing
        self.may_speak, self.was_cancelled = threading.Event(), threading.Event()

    def cancel(self) -> None:
        """Note it, and end."""
        self.was_cancelled.set()
        self.may_speak.set()

    def answers(self) -> Iterator[str]:
        """Wait, then fail or speak."""
        self.may_speak.wait(20)
        if self._failing:
            raise self._failing
        yield from self._messages


@pytest.fixture
def soonest() -> Iterator[Soonest]:
    """Waits for first messages."""
    soonest = Soonest()
    yield soonest
    soonest.close()


@pytest.fixture
def usual() -> Usual:
    """Calls take a hundredth of a second, as a rule."""
    usual = Usual(least_s=0.0)
    usual.saw(0.01)
    return usual


def begun(soonest: Soonest, call: Call) -> Begun[Call]:
    """Begin a call."""
    return soonest.begin(call, call.answers())


def test_whoever_answers_in_time_is_heard_and_nobody_else_is_asked(soonest: Soonest, usual: Usual) -> None:
    """As nearly all do."""
    call = Call("x", "y")
    call.may_speak.set()
    heard = soonest.of(begun(soonest, call), usual, lambda: pytest.fail("nobody is late"))
    assert list(heard.messages()) == ["x", "y"]


def test_an_answer_without_messages_is_an_answer(soonest: Soonest, usual: Usual) -> None:
    """It is not waited for any longer."""
    call = Call()
    call.may_speak.set()
    assert list(soonest.of(begun(soonest, call), usual, lambda: None).messages()) == []


def test_of_a_late_call_and_another_the_first_is_heard_and_the_late_one_told_to_stop(soonest: Soonest, usual: Usual) -> None:
    """Its worker has better things to do."""
    late, other = Call("late"), Call("x")
    other.may_speak.set()
    heard = soonest.of(begun(soonest, late), usual, lambda: begun(soonest, other))
    assert list(heard.messages()) == ["x"]
    assert late.was_cancelled.is_set()
    assert not other.was_cancelled.is_set()


def test_a_late_call_that_answers_first_after_all_is_heard(soonest: Soonest, usual: Usual) -> None:
    """It may have been slow, and nothing else."""
    late, other = Call("late"), Call("x")

    def ask_another() -> Begun[Call]:
        late.may_speak.set()
        return begun(soonest, other)

    assert list(soonest.of(begun(soonest, late), usual, ask_another).messages()) == ["late"]
    assert other.was_cancelled.is_set()


def test_a_late_call_is_waited_for_where_there_is_nobody_else(soonest: Soonest, usual: Usual) -> None:
    """Nothing is better."""
    late = Call("late")

    def ask_nobody() -> None:
        late.may_speak.set()

    assert list(soonest.of(begun(soonest, late), usual, ask_nobody).messages()) == ["late"]


def test_another_one_that_fails_as_the_late_one_need_not_is_no_answer(soonest: Soonest, usual: Usual) -> None:
    """The late one may still speak."""
    late, other = Call("late"), Call(failing=TierUnavailableError("it has just died"))

    def ask_another() -> Begun[Call]:
        other.may_speak.set()
        second = begun(soonest, other)
        second.first.exception()
        threading.Timer(0.01, late.may_speak.set).start()
        return second

    assert list(soonest.of(begun(soonest, late), usual, ask_another).messages()) == ["late"]


def test_behind_another_one_that_failed_a_third_is_asked(soonest: Soonest, usual: Usual) -> None:
    """Of three, one is silent and one has just died."""
    late, dead, third = Call("late"), Call(failing=TierUnavailableError("it has just died")), Call("x")
    dead.may_speak.set()
    third.may_speak.set()
    others = iter([dead, third])
    heard = soonest.of(begun(soonest, late), usual, lambda: begun(soonest, next(others)))
    assert list(heard.messages()) == ["x"]
    assert late.was_cancelled.is_set()


def test_whoever_waits_no_longer_ends_all_calls(soonest: Soonest, usual: Usual) -> None:
    """As where a deadline is found to be over when another one is about to be asked."""
    late = Call("late")

    def too_late() -> None:
        raise DeadlineError("over")

    with pytest.raises(DeadlineError):
        soonest.of(begun(soonest, late), usual, too_late)
    assert late.was_cancelled.is_set()


def test_another_one_that_refuses_the_question_answers_it(soonest: Soonest, usual: Usual) -> None:
    """The late one would say the same."""
    late, other = Call("late"), Call(failing=InvalidInputError("too long"))
    other.may_speak.set()
    heard = soonest.of(begun(soonest, late), usual, lambda: begun(soonest, other))
    with pytest.raises(InvalidInputError):
        list(heard.messages())
    assert late.was_cancelled.is_set()
