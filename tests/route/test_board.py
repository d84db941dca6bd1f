"""Who is there, and who is asked next."""

from __future__ import annotations

import threading

import pytest

from kvstore.core.errors import TierUnavailableError
from kvworker.route.board import Board

A, B = ("a", "127.0.0.1:1"), ("b", "127.0.0.1:2")
WANTED = {("alice", "0" * 64): 1000}


class Clock:
    """Goes when it is told."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Call:
    """Counts how often it was cancelled."""

    cancelled = 0

    def cancel(self) -> None:
        """Count."""
        self.cancelled += 1


@pytest.fixture
def clock() -> Clock:
    """A clock of the test's."""
    return Clock()


@pytest.fixture
def board(clock: Clock) -> Board:
    """Two workers."""
    board = Board(10_000, clock=clock)
    board.join(*A)
    board.join(*B)
    return board


def chosen(board: Board) -> str:
    """Return who would be asked now."""
    with board.turn(WANTED) as turn:
        return turn.name


def answer(board: Board, name: str) -> None:
    """Have a worker answer over the wanted passage."""
    with board.turn(WANTED, only=name) as turn:
        board.answered(turn, WANTED, 0, 0.0, 0.0)


@pytest.mark.parametrize("name", ["a", "b"])
def test_who_answered_is_asked_again(board: Board, name: str) -> None:
    """It has the passage at hand now."""
    answer(board, name)
    assert chosen(board) == name


def test_requests_that_came_together_are_spread(board: Board) -> None:
    """The second sees the first waiting; nothing is held yet."""
    with board.turn(WANTED) as first, board.turn(WANTED) as second:
        assert {first.name, second.name} == {"a", "b"}


def test_a_request_tried_elsewhere_is_not_sent_back_while_there_is_another(board: Board) -> None:
    """Unless nobody else takes requests."""
    with board.turn(WANTED, but=[A]) as turn:
        assert turn.name == "b"
    board.lost(B)
    with board.turn(WANTED, but=[A]) as turn:
        assert turn.name == "a"


def test_a_lost_worker_is_asked_nothing_until_it_is_seen_alive_and_holds_nothing_then(board: Board) -> None:
    """It may have started anew."""
    answer(board, "a")
    board.lost(A)
    assert chosen(board) == "b"
    board.alive(A)
    assert not next(state for state in board.states(WANTED) if state.name == "a").held


def test_a_worker_that_was_late_is_asked_nothing_until_it_is_seen_alive_and_holds_what_it_held(board: Board) -> None:
    """It did not start anew: nothing was lost."""
    answer(board, "a")
    board.doubt(A)
    assert chosen(board) == "b"
    board.alive(A)
    assert chosen(board) == "a"


def test_news_of_the_place_where_a_worker_was_are_no_news_of_it(board: Board) -> None:
    """A health check of the dead process may fail after the new one joined."""
    board.join("a", "127.0.0.1:3")
    board.lost(A)
    board.lost(B)
    assert chosen(board) == "a"


def test_a_silent_worker_s_calls_are_ended_and_a_lost_one_s_are_not(board: Board) -> None:
    """A draining worker takes no new calls and finishes what it has."""
    call = Call()
    with board.turn(WANTED, only="a") as turn:
        turn.attach(call)
        board.lost(A)
        assert call.cancelled == 0
        board.give_up(A)
        assert call.cancelled == 1


@pytest.mark.parametrize("end", [lambda board: board.leave("a"), lambda board: board.join("a", "127.0.0.1:9")], ids=["left", "moved"])
def test_calls_to_a_worker_that_left_or_moved_are_ended(board: Board, end: object) -> None:
    """Those begun, and those that begin just then."""
    call, late = Call(), Call()
    with board.turn(WANTED, only="a") as turn:
        turn.attach(call)
        end(board)  # type: ignore[operator]
        turn.attach(late)
        assert (call.cancelled, late.cancelled) == (1, 1)


def test_a_draining_worker_finishes_what_it_has_and_gets_nothing_more(board: Board) -> None:
    """Its end can be waited for."""
    with board.turn(WANTED, only="a"):
        board.drain("a")
        assert chosen(board) == "b"
        assert not board.wait_idle("a", 0.0)
    assert board.wait_idle("a", 0.0)


def test_a_request_waits_for_a_worker_that_comes(board: Board) -> None:
    """Between a death and a restart nothing fails."""
    board = Board(10_000)
    joining = threading.Timer(0.05, lambda: board.join(*A))
    joining.start()
    with board.turn(WANTED, patience_s=30.0) as turn:
        assert turn.name == "a"
    joining.join()


def test_nobody_in_time_is_an_error_that_may_be_tried_again(clock: Clock) -> None:
    """It says how many workers there are."""
    board = Board(10_000, clock=clock)
    with pytest.raises(TierUnavailableError, match="none of 0 workers"), board.turn(WANTED, patience_s=0.0):
        pytest.fail("there is nobody")


def test_a_caller_who_left_waits_no_longer(board: Board) -> None:
    """Its thread is needed for others."""
    board.lost(A)
    board.lost(B)
    with pytest.raises(TierUnavailableError), board.turn(WANTED, patience_s=3600.0, is_wanted=lambda: False):
        pytest.fail("nobody serves")


def test_who_was_not_seen_for_long_is_not_believed_to_hold_anything(board: Board, clock: Clock) -> None:
    """The age of the last sign of life is part of its state."""
    answer(board, "a")
    clock.now_s = 100.0
    board.alive(B)
    assert {state.name: state.age_s for state in board.states(WANTED)} == {"a": 100.0, "b": 0.0}


def test_pace_and_wait_are_learned(board: Board) -> None:
    """From what answers took: 8 MB in 2 s, and 0.6 s behind two others, many times over; who was alone waited for nobody."""
    for _ in range(200):
        with board.turn({}, only="a") as first, board.turn({}, only="a"), board.turn({}, only="a") as third:
            board.answered(first, WANTED, 8_000_000, 2.0, 99.0)
            board.answered(third, WANTED, 8_000_000, 2.0, 0.6)
    state = next(state for state in board.states(WANTED) if state.name == "a")
    assert state.bytes_per_s == pytest.approx(4e6, rel=0.01)
    assert state.wait_s == pytest.approx(0.3, rel=0.01)
