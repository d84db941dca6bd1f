"""What the routing benchmark counts, at a size that takes no time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from kvworker.bench.routing import at_random
from kvworker.bench.routing_lab import Lab, zipf
from kvworker.route.choose import WorkerState, choose


def test_a_trace_is_the_same_for_a_seed_and_popular_documents_come_more_often() -> None:
    """In proportion to the rank to the power of minus the exponent: first to tenth as 10 to 1."""
    assert zipf(20, 100, 1.0, 3) == zipf(20, 100, 1.0, 3) != zipf(20, 100, 1.0, 4)
    often = [count for _, count in Counter(zipf(20, 20_000, 1.0, 0)).most_common()]
    assert 8 <= often[0] / often[9] <= 12.5


def test_chance_leaves_out_who_takes_no_requests() -> None:
    """Otherwise it would not be compared with the same workers."""
    states = [WorkerState("a", {}), WorkerState("b", {}, is_draining=True), WorkerState("c", {}, is_serving=False), WorkerState("d", {})]
    decide = at_random(0)
    assert {decide(states, {}) for _ in range(50)} == {"a", "d"}
    assert decide(states[1:3], {}) is None


def test_asking_who_has_the_passages_moves_less_than_half_and_changes_no_answer(tmp_path: Path) -> None:
    """Each worker holds most documents, so that only the first questions move bytes."""
    with Lab(tmp_path, n_workers=2, n_documents=4, share=0.8, n_callers=1) as lab:
        trace = zipf(4, 60, 0.7, 0)
        aware, chance = lab.replay(trace, choose), lab.replay(trace, at_random(0))
    assert aware.n_equal == chance.n_equal == 60
    assert 0 < aware.moved_nbytes <= 0.75 * chance.moved_nbytes
    assert aware.again_nbytes <= 0.5 * chance.again_nbytes
