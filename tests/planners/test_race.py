"""The race: what it answers, step by step, and how it ends in worlds that it did not plan for."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.core.errors import InvalidInputError
from kvstore.planners.makespan import Option
from kvstore.planners.prefix_split import split_prefix
from kvstore.planners.race import ChunkState, Race
from kvstore.planners.race_events import (
    Abandon,
    Action,
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
    Wait,
)
from kvstore.planners.share_out import NOWHERE, Work
from kvstore.planners.simulate import Outcome, Speed, World, simulate
from kvworker.bench.planner_cases import A100_LOAD_S, A100_S, make_case, run_race
from kvworker.bench.planner_oracles import best_prefix, best_prefix_at


def race_of(
    compute_s: list[float], load_s: list[float], error: float = 0.0, step_rows: int = 1, question_s: float = 0.0, overlap: float = 0.0
) -> Race:
    """Return a race over one lane; chunks of infinite load are stored nowhere."""
    lanes = [0 if s < math.inf else NOWHERE for s in load_s]
    work = Work(compute_s, lanes, [s if s < math.inf else 0.0 for s in load_s], [0.0] * len(load_s), question_s, overlap)
    return Race(work, [[Option(0, s)] if s < math.inf else [] for s in load_s], [1] * len(load_s), [error], step_rows=step_rows)


def run(
    race: Race, compute_s: list[float], load_s: list[float], lane: Speed | None = None, last_s: float = 0.0, overlap: float = 0.0
) -> Outcome:
    """Return how a race over one lane goes."""
    return simulate(race, World(compute_s, [load_s], [lane or Speed()], last_s, overlap=overlap))


def test_it_loads_from_the_back_and_computes_from_the_front() -> None:
    """Two fetches on their way, one step under way."""
    assert race_of([1.0] * 4, [1.0] * 4).handle(Tick(0.0)) == (Fetch(3, 0), Fetch(2, 0), Compute(0, 1))


def test_it_fetches_no_more_than_its_window() -> None:
    """The next one is asked for when one arrives."""
    race = race_of([1.0] * 6, [0.5] * 6)
    race.handle(Tick(0.0))
    assert race.handle(Arrived(0.5, 5)) == (Fetch(3, 0),)


def test_a_step_whose_chunks_arrived_is_abandoned_and_the_race_is_over() -> None:
    """Waiting for it is what the published form does."""
    race = race_of([1.0, 1.0], [1.1, 1.1], error=0.5)
    assert race.handle(Tick(0.0)) == (Fetch(1, 0), Compute(0, 1))
    assert race.handle(BetweenLayers(0.5, 0.1)) == (Fetch(0, 0),)  # the step turns out to take 5 s
    assert race.handle(Arrived(1.1, 1)) == ()
    assert race.handle(Arrived(2.2, 0)) == (Abandon(),)
    assert race.handle(StepStopped(2.3)) == (Finish((), math.inf),)


def test_abandoning_is_said_once() -> None:
    """However often the step asks between its layers."""
    race = race_of([1.0], [0.9], error=0.5)
    race.handle(Tick(0.0))
    assert race.handle(Arrived(0.5, 0)) == (Abandon(),)
    assert race.handle(BetweenLayers(0.6, 0.5)) == ()


def test_a_step_that_ends_behind_the_loader_is_not_begun() -> None:
    """Its lane is known: 1 s to load, 2 s to compute."""
    assert race_of([2.0], [1.0]).handle(Tick(0.0)) == (Fetch(0, 0), Finish((0,), 1.1))


def test_an_uncertain_lane_is_raced_and_not_waited_for() -> None:
    """A step that loses costs a layer; a wait for a lane that breaks down costs all of it."""
    assert race_of([2.0], [1.0], error=0.3).handle(Tick(0.0))[-1] == Compute(0, 1)


def test_a_lane_that_is_late_is_not_waited_for_any_more() -> None:
    """10 % behind what was predicted, computing begins."""
    race = race_of([2.0], [1.0])
    race.handle(Tick(0.0))
    assert race.handle(Tick(1.1)) == (Abandon(),)
    assert race.handle(StepStopped(1.1)) == (Compute(0, 1),)


def test_a_chunk_that_was_computed_is_not_waited_for_on_its_lane() -> None:
    """Its fetch is cancelled, and frees the window."""
    race = race_of([2.0], [1.0])
    race.handle(Tick(0.0))
    race.handle(Tick(1.1))
    race.handle(StepStopped(1.1))
    assert race.handle(StepDone(3.1)) == (Cancel(0), Finish((), math.inf))


def test_a_cancelled_chunk_that_arrives_nevertheless_changes_nothing() -> None:
    """It was on its way."""
    race = race_of([2.0], [1.0])
    for event in (Tick(0.0), Tick(1.1), StepStopped(1.1), StepDone(3.1)):
        race.handle(event)
    race.handle(Arrived(3.2, 0))
    assert race.state == [ChunkState.COMPUTED]


def test_a_chunk_that_can_not_be_had_is_computed() -> None:
    """The store lost it, or it was damaged."""
    race = race_of([2.0], [1.0])
    race.handle(Tick(0.0))
    assert race.handle(Failed(0.5, 0)) == (Abandon(),)
    assert race.handle(StepStopped(0.5)) == (Compute(0, 1),)


def test_a_chunk_that_one_lane_lost_comes_over_another() -> None:
    """Two tiers have it."""
    work = Work([9.0], [0], [1.0], [0.0])
    race = Race(work, [[Option(0, 1.0), Option(1, 2.0)]], [1], [0.0, 0.0])
    race.handle(Tick(0.0))
    race.handle(Failed(0.5, 0))
    assert race.handle(StepStopped(0.5)) == (Fetch(0, 1), Finish((0,), 0.5 + 2.2))


def test_chunks_move_to_a_lane_that_is_much_sooner() -> None:
    """Lane 0 takes sixteen times as long for its first chunk; what nobody asked for yet goes to lane 1."""
    work = Work([99.0] * 6, [0] * 6, [1.0] * 6, [0.0] * 6)
    race = Race(work, [[Option(0, 1.0), Option(1, 1.5)]] * 6, [1] * 6, [0.0, 0.0])
    assert [action for action in race.handle(Tick(0.0)) if isinstance(action, Fetch)] == [Fetch(5, 0), Fetch(4, 0)]
    assert [action for action in race.handle(Arrived(16.0, 5)) if isinstance(action, Fetch)] == [Fetch(3, 1), Fetch(2, 1)]


def test_the_lanes_of_the_plan_are_kept_as_long_as_it_holds() -> None:
    """They were chosen together."""
    race = Race(Work([99.0] * 2, [1, 1], [1.0] * 2, [0.0] * 2), [[Option(0, 0.5), Option(1, 1.0)]] * 2, [1] * 2, [0.0, 0.0])
    assert [action for action in race.handle(Tick(0.0)) if isinstance(action, Fetch)] == [Fetch(1, 1), Fetch(0, 1)]


def test_steps_take_several_chunks_but_never_what_is_to_be_loaded() -> None:
    """Four rows at once, and the plan computes three."""
    assert race_of([1.0] * 6, [1.0] * 6, step_rows=4).handle(Tick(0.0))[-1] == Compute(0, 3)


def test_the_device_rests_while_what_stands_before_a_computed_chunk_is_on_its_way() -> None:
    """Chunk 1 is stored nowhere and needs chunk 0."""
    actions = race_of([5.0, 1.0, 9.0], [1.0, math.inf, 1.0]).handle(Tick(0.0))
    assert actions == (Fetch(0, 0), Fetch(2, 0), Wait(1.1))


def test_the_last_step_runs_beside_what_is_still_loading() -> None:
    """Its layers follow the layer groups of the chunk: 2 s to load, 1 s of question, half of it hidden."""
    race = race_of([9.0, 9.0], [1.0, 1.0], question_s=1.0, overlap=0.5)
    assert run(race, [9.0, 9.0], [1.0, 1.0], last_s=1.0, overlap=0.5).seconds == 2.5


@settings(max_examples=60)
@given(n=st.integers(1, 24), first_s=st.floats(0.01, 1), slope=st.floats(0, 0.3), load_s=st.floats(0.01, 3))
def test_with_right_costs_and_single_steps_it_takes_as_long_as_the_best_split(n: int, first_s: float, slope: float, load_s: float) -> None:
    """Chunks of one size: the meeting point is where the best plan splits."""
    compute_s, loads_s = [first_s * (1 + slope * i) for i in range(n)], [load_s] * n
    assert run(race_of(compute_s, loads_s), compute_s, loads_s).seconds == pytest.approx(best_prefix(compute_s, loads_s), rel=1e-9)


def test_chunks_of_many_sizes_take_no_longer_than_the_best_split_on_average() -> None:
    """100 seeds. A single race may end a little later, when the last fetch turns out to be a large one, or sooner, skipping a small one."""
    ratios = []
    for seed in range(100):
        case = make_case(seed, 2 + seed % 20, 1)
        ratios.append(run_race(case, 1, (Speed(),), Speed(), (0.0,)) / best_prefix(case.compute_s, case.load_s))
    assert statistics.mean(ratios) <= 1
    assert max(ratios) <= 1.05


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 24), device=st.floats(0.67, 1.5), link=st.floats(0.67, 1.5))
def test_with_wrong_costs_it_stays_below_computing_and_loading_all_plus_a_chunk(seed: int, n: int, device: float, link: float) -> None:
    """Steps of four chunks; the plan is wrong by up to 1.5 times about the device and about the link, which it knows to 50 %."""
    case = make_case(seed, n, 1)
    better_s = min(sum(case.compute_s) / device, sum(case.load_s) / link)
    raced_s = run_race(case, 4, (Speed(((0.0, link),)),), Speed(((0.0, device),)), (0.5,))
    assert raced_s <= better_s + max(max(case.load_s) / link, max(case.compute_s) / device)


@pytest.mark.parametrize("factor", [0.25, 4.0])
@pytest.mark.parametrize("moment_s", [0.1, 0.4, 0.8, 1.2, 1.6, 1.9])
def test_a_link_that_changes_fourfold_is_followed_to_one_percent(moment_s: float, factor: float) -> None:
    """Cake's A100 curve, 64 chunks; the oracle knows beforehand."""
    load_s = [A100_LOAD_S] * len(A100_S)
    lane = Speed(((0.0, 1.0), (moment_s, factor)))
    raced_s = run(race_of(list(A100_S), load_s, error=0.1), list(A100_S), load_s, lane).seconds
    assert raced_s <= 1.01 * best_prefix_at(A100_S, load_s, lane)


def test_the_example_of_the_paper_is_raced_in_its_best_time() -> None:
    """1934.4 ms: 33 chunks computed, 31 loaded."""
    load_s = [A100_LOAD_S] * len(A100_S)
    assert run(race_of(list(A100_S), load_s), list(A100_S), load_s).seconds == pytest.approx(split_prefix(A100_S, load_s).seconds)


@pytest.mark.parametrize("stalls_s", [0.0, 0.5, 1.0, 1.5, 1.9])
def test_a_link_that_stalls_for_ever_costs_little_more_than_computing_all(stalls_s: float) -> None:
    """At any moment; what arrived before it is used."""
    load_s = [A100_LOAD_S] * len(A100_S)
    lane = Speed(((0.0, 1.0), (stalls_s, 0.0))) if stalls_s else Speed(((0.0, 0.0),))
    raced_s = run(race_of(list(A100_S), load_s, error=0.1), list(A100_S), load_s, lane).seconds
    assert raced_s <= sum(A100_S) + 2 * A100_LOAD_S


class Watched(Race):
    """Asserts what a race promises about its actions."""

    def handle(self, event: Event) -> tuple[Action, ...]:
        """Check the actions against the state."""
        was_running = self._step is not None and not isinstance(event, StepDone | StepStopped)
        actions = super().handle(event)
        assert all(len(flying) <= self._window for flying in self._flying)
        for action in actions:
            if isinstance(action, Compute | Finish | Wait):
                assert not was_running
            if isinstance(action, Compute):
                assert all(state >= ChunkState.LOADED for state in self.state[: action.first])
            if isinstance(action, Finish):
                assert all(state >= ChunkState.LOADED or i in action.pending for i, state in enumerate(self.state))
        return actions


@settings(max_examples=150)
@given(seed=st.integers(0, 10**9))
def test_whatever_fails_or_stalls_every_chunk_is_there_in_the_end(seed: int) -> None:
    """Two lanes that lose chunks, stand still and change their speed. Over 1,500 seeds the worst took 1.16 times computing all."""
    rng = random.Random(seed)
    case = make_case(seed, rng.randint(1, 10), 2)
    loads = [
        [math.inf if rng.random() < 0.2 else next((o.seconds for o in found if o.lane == lane), 0.0) for found in case.options]
        for lane in range(2)
    ]
    lanes = [Speed(((0.0, rng.choice((0.0, 1.0))), (rng.uniform(0.1, 9), rng.choice((0.0, 0.3, 4.0))))) for _ in range(2)]
    race = Watched(case.work(), case.options, [1] * len(case.compute_s), [0.2, 0.2], step_rows=rng.randint(1, 4))
    outcome = simulate(race, World(case.compute_s, loads, lanes, last_s=0.1, overlap=0.5))
    assert all(state >= ChunkState.LOADED for state in race.state)
    assert outcome.seconds <= 1.3 * sum(case.compute_s) + 0.1


@pytest.mark.parametrize("numbers", [{"window": 0}, {"step_rows": 0}])
def test_a_race_without_room_is_refused(numbers: dict[str, int]) -> None:
    """It could neither load nor compute."""
    with pytest.raises(InvalidInputError, match="at least 1"):
        Race(Work([], [], [], []), [], [], [], **numbers)
