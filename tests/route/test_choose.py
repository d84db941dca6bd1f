"""Who is asked: the worker that has everything at hand first."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from kvworker.route.choose import STALE_S, WorkerState, choose, missing_nbytes, score

WANTED = {("alice", f"{n:064x}"): 1_000_000 for n in range(4)}
KEYS = list(WANTED)
IDLE = WorkerState("idle", {}, free_bytes=10**9, wait_s=0.1, bytes_per_s=1e6)
HOLDER = replace(IDLE, name="holder", held=WANTED)


def holding(name: str, n_held: int, n_waiting: int = 0) -> WorkerState:
    """Return a worker that holds the first few wanted passages."""
    return replace(IDLE, name=name, held=dict.fromkeys(KEYS[:n_held], 1_000_000), n_waiting=n_waiting)


def test_the_worker_that_has_most_of_the_bytes_is_asked() -> None:
    """All else equal, bytes decide."""
    assert choose([holding("one", 1), holding("three", 3), holding("two", 2)], WANTED) == "three"


def test_another_tenants_copies_are_worth_nothing() -> None:
    """They can't be used for this caller."""
    other = replace(IDLE, name="other", held={("bob", passage): 1_000_000 for _, passage in KEYS})
    assert missing_nbytes(other, WANTED) == 4_000_000


def test_a_score_is_seconds_of_waiting_and_of_bringing() -> None:
    """Two requests hold it up by 0.1 s each, and 3 MB are missing at 1 MB a second."""
    assert score(holding("w", 1, n_waiting=2), WANTED) == pytest.approx(2 * 0.1 + 3.0)


def test_a_long_queue_outweighs_the_bytes() -> None:
    """4 MB take 4 s to bring; 60 requests of 0.1 s each take longer."""
    assert choose([replace(HOLDER, n_waiting=39), IDLE], WANTED) == "holder"
    assert choose([replace(HOLDER, n_waiting=60), IDLE], WANTED) == "idle"


def test_a_worker_that_brings_fast_needs_to_hold_less() -> None:
    """What is missing counts at the pace of who has to bring it."""
    assert choose([replace(IDLE, name="fast", bytes_per_s=1e9), holding("slow", 3)], WANTED) == "fast"


@pytest.mark.parametrize("change", [{"is_serving": False}, {"is_draining": True}], ids=lambda change: next(iter(change)))
def test_who_takes_no_requests_is_not_asked(change: dict[str, bool]) -> None:
    """However much it holds."""
    assert choose([replace(HOLDER, **change), IDLE], WANTED) == "idle"


def test_a_summary_that_is_stale_is_not_believed() -> None:
    """The worker may have started anew; it is asked all the same if it serves."""
    stale = replace(HOLDER, age_s=STALE_S * 1.01)
    assert missing_nbytes(stale, WANTED) == 4_000_000
    assert choose([stale, holding("one", 1)], WANTED) == "one"
    assert choose([stale], WANTED) == "holder"


def test_nobody_is_nobody() -> None:
    """No worker, or none that serves."""
    assert choose([], WANTED) is None
    assert choose([replace(IDLE, is_serving=False)], WANTED) is None


def test_of_equals_the_less_busy_is_asked() -> None:
    """Before anything was measured a request may seem to take no time."""
    states = [replace(IDLE, name=name, wait_s=0.0, n_waiting=n) for name, n in (("a", 2), ("b", 0), ("c", 1))]
    assert choose(states, {}) == "b"


def test_bytes_without_room_count_twice() -> None:
    """What they drive out is asked for again."""
    assert score(replace(IDLE, free_bytes=1_000_000), WANTED) == pytest.approx(4.0 + 3.0)


def test_of_nearly_equals_the_one_that_lacks_less_is_asked() -> None:
    """Paces are measured; a tenth more of one decides nothing."""
    faster = replace(holding("faster", 0), bytes_per_s=1.3e6)
    assert choose([faster, holding("holder", 1)], WANTED) == "holder"


def test_what_nobody_has_goes_where_there_is_room_for_it() -> None:
    """Elsewhere it would drive out what others ask for."""
    full, busy = replace(IDLE, name="full", free_bytes=3_999_999), replace(IDLE, name="room", free_bytes=4_000_000, n_waiting=1)
    assert choose([full, busy], WANTED) == "room"


def test_a_passage_that_nobody_has_draws_the_same_worker_everywhere() -> None:
    """Two routers that agree on nothing else send it to one place; and passages spread."""
    workers = [replace(IDLE, name=f"worker-{n}") for n in range(4)]
    drawn = []
    for n in range(400):
        wanted = {("alice", f"{n:064x}"): 1}
        chosen = choose(workers, wanted)
        assert choose(random.Random(n).sample(workers, 4), wanted) == chosen
        drawn.append(chosen)
    assert all(60 <= drawn.count(worker.name) <= 140 for worker in workers)  # 100, give or take more than 4 sigma


def test_a_worker_that_leaves_moves_only_what_it_drew() -> None:
    """The others' draws do not depend on it."""
    workers = [replace(IDLE, name=f"worker-{n}") for n in range(4)]
    for n in range(200):
        wanted = {("alice", f"{n:064x}"): 1}
        before = choose(workers, wanted)
        assert before == "worker-3" or choose(workers[:3], wanted) == before
