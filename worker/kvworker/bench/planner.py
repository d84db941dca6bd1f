"""Planners against oracles that try everything, and the race against what only hindsight knows; simulated, so no model and no store.

`mean_over_oracle` and `max_over_oracle` are plan times over the best there is (P1 and P2 also as raced, event by event, at steps of one
chunk). `max_over_better` is the longest race or plan over the better of computing all and loading all plus one chunk's load; races of P1
and P2 run in steps of up to four chunks through worlds up to 1.5 times as fast or slow as planned. `step_over_offline` is the worst race
over the best split that knew beforehand that the link becomes four times as fast or slow. `plan_ms` is one plan of x chunks, over four
tiers where there are tiers. Seeds are 0, 1, 2, ... and are printed.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from kvclient.cli.output import Output
from kvstore.planners.independent_set import Recompute, choose_set, ways_of
from kvstore.planners.layer_axis import better_axis, split_layers
from kvstore.planners.levels import Levels
from kvstore.planners.makespan import Option
from kvstore.planners.parallel_tiers import split_over_tiers
from kvstore.planners.prefix_split import split_prefix
from kvstore.planners.simulate import Speed
from kvworker.bench.benchmark import Asked, show_rows
from kvworker.bench.planner_cases import A100_LOAD_S, A100_S, Case, make_case, make_levels, run_race
from kvworker.bench.planner_oracles import all_level_plans, best_over_tiers, best_prefix, best_prefix_at, best_set
from kvworker.bench.rows import Bench, Row, cpu_name

_TIERS = 3
_STEP_CHUNKS = 4
_MOMENTS = tuple(0.1 * i for i in range(1, 20))  # seconds into 1.93 s, the best plan at the first speed
_FACTORS = (0.25, 4.0)


@dataclass(frozen=True)
class PlannerBench:
    """`larder bench planner`.

    Parameters
    ----------
    sizes : tuple of int
        Chunks of the plans that are timed.
    n_instances, n_tried : int
        Seeded requests whose bound is checked, and those that are compared with an oracle which tries everything.
    n_chunks : int
        Chunks of requests that an oracle tries everything for.
    n_timed : int
        Plans that are timed.
    """

    name: ClassVar[str] = "planner"
    sizes: tuple[int, ...] = (64, 512, 2048)
    n_instances: int = 2000
    n_tried: int = 1000
    n_chunks: int = 10
    n_timed: int = 300

    @classmethod
    def quick(cls) -> PlannerBench:
        """Return the benchmark at a size that ends within a minute on two cores."""
        return cls(sizes=(512,), n_tried=200, n_chunks=7, n_timed=100)

    def run(self, asked: Asked) -> Iterator[Row]:
        """Yield rows, problem by problem."""
        print(f"seeds 0 to {self.n_instances - 1} for bounds, 0 to {self.n_tried - 1} for oracles", file=sys.stderr)
        bench = Bench(self.name, "chunks", cpu_name(), "float64")
        for variant, problem in (("P1", self._p1), ("P2", self._p2), ("P3", self._p3), ("P4", self._p4), ("P5", self._p5)):
            over_oracle, over_better = problem()
            yield bench.row(variant, "mean_over_oracle", "ratio", self.n_chunks, [statistics.mean(over_oracle)])
            yield bench.row(variant, "max_over_oracle", "ratio", self.n_chunks, [max(over_oracle)])
            yield bench.row(variant, "max_over_better", "ratio", self.n_chunks, [max(over_better)])
            if variant == "P1":
                yield bench.row(variant, "step_over_offline", "ratio", len(A100_S), [max(_steps())])
            for size in self.sizes:
                yield bench.row(variant, "plan_ms", "ms", size, _timed(_planned(variant, size), self.n_timed))

    def show(self, rows: Sequence[Row], output: Output) -> None:
        """Print one line per row."""
        show_rows(rows, output)

    def _p1(self) -> tuple[list[float], list[float]]:
        """Return plans and races over the best prefix, and races over the better of computing and loading."""
        over_oracle, over_better = [], []
        for seed in range(self.n_instances):
            case = make_case(seed, 2 + seed % 30, 1)
            oracle_s = best_prefix(case.compute_s, case.load_s)
            over_oracle.append(split_prefix(case.compute_s, case.load_s).seconds / oracle_s)
            if seed < self.n_tried:
                over_oracle.append(run_race(case, 1, (Speed(),), Speed(), (0.0,)) / oracle_s)
            over_better.append(_bound(case, seed, sum(case.load_s)))
        return over_oracle, over_better

    def _p2(self) -> tuple[list[float], list[float]]:
        """Return plans over the best assignment, and races over several tiers over the better of computing and loading."""
        over_oracle, over_better = [], []
        for seed in range(self.n_instances):
            case = make_case(seed, self.n_chunks, _TIERS)
            if seed < self.n_tried:
                plan = split_over_tiers(case.compute_s, case.options, _TIERS)
                over_oracle.append(plan.seconds / best_over_tiers(case.compute_s, case.options, _TIERS))
            over_better.append(_bound(case, seed, _load_all(case)))
        return over_oracle, over_better

    def _p3(self) -> tuple[list[float], list[float]]:
        """Return plans over the best set, computing exactly and independently in turn."""
        over_oracle, over_better = [], []
        for seed in range(self.n_instances):
            case, how = make_case(seed, self.n_chunks, _TIERS - 1), (Recompute.EXACT, Recompute.INDEPENDENT)[seed % 2]
            rng = random.Random(seed)
            link_s = [rng.uniform(0, 0.2) * s for s in case.compute_s]
            plan = choose_set(ways_of(case.compute_s, case.options, _TIERS - 1, link_s, how), _TIERS - 1)
            computed_link_s = link_s if how is Recompute.INDEPENDENT else [0.0] * len(link_s)
            if seed < self.n_tried:
                links = list(zip(computed_link_s, link_s, strict=True))
                over_oracle.append(plan.seconds / best_set(case.compute_s, case.options, _TIERS - 1, links))
            better_s = min(sum(case.compute_s) + sum(computed_link_s), _load_all(case) + sum(link_s))
            over_better.append(plan.seconds / (better_s + _one_chunk(case)))
        return over_oracle, over_better

    def _p4(self) -> tuple[list[float], list[float]]:
        """Return the quickest plans within a budget of loss over the best; loading all means at the level without loss."""
        over_oracle, over_better = [], []
        for seed in range(self.n_instances):
            compute_s, load_s, loss = make_levels(seed, min(self.n_chunks, 5))
            most_loss = random.Random(seed).choice((0.0, 0.1, 0.3, 1.0))
            plan = Levels(compute_s, load_s, loss).least_time(most_loss)
            if seed < self.n_tried:
                seconds, lost = all_level_plans(compute_s, load_s, loss)
                over_oracle.append(plan.seconds / float(seconds[lost <= most_loss + 1e-12].min()))
            best_s = [float(s) for s in load_s[:, 0]]
            over_better.append(plan.seconds / (min(sum(compute_s), sum(best_s)) + max(best_s)))
        return over_oracle, over_better

    def _p5(self) -> tuple[list[float], list[float]]:
        """Return the better of both axes over the best prefix of either."""
        over_oracle, over_better = [], []
        for seed in range(self.n_instances):
            case, n_layers = make_case(seed, 2 + seed % 30, 1), random.Random(seed).choice((12, 32, 80))
            layers_s = [sum(case.compute_s) / n_layers] * n_layers, [sum(case.load_s) / n_layers] * n_layers
            plan = better_axis(split_prefix(case.compute_s, case.load_s), split_layers(*layers_s))
            over_oracle.append(plan.split.seconds / min(best_prefix(case.compute_s, case.load_s), best_prefix(*layers_s)))
            over_better.append(plan.split.seconds / (min(sum(case.compute_s), sum(case.load_s)) + _one_chunk(case)))
        return over_oracle, over_better


def _bound(case: Case, seed: int, load_all_s: float) -> float:
    """Return a race in coarse steps through a world that the plan was wrong about, over its bound in that world."""
    rng = random.Random(seed)
    device, link = math.pow(1.5, rng.uniform(-1, 1)), math.pow(1.5, rng.uniform(-1, 1))
    speeds = tuple(Speed(((0.0, link),)) for _ in range(case.n_lanes))
    raced_s = run_race(case, _STEP_CHUNKS, speeds, Speed(((0.0, device),)), (0.5,) * case.n_lanes)
    return raced_s / (min(sum(case.compute_s) / device, load_all_s / link) + _one_chunk(case) / link)


def _load_all(case: Case) -> float:
    """Return how long loading all takes, by the same planner with computing ruled out."""
    never = [sum(o.seconds for found in case.options for o in found)] * len(case.options)
    return split_over_tiers(never, case.options, case.n_lanes).seconds


def _one_chunk(case: Case) -> float:
    """Return the seconds of loading the largest chunk over its quickest lane."""
    return max(min(o.seconds for o in found) for found in case.options)


def _steps() -> Iterator[float]:
    """Yield races over the best split in hindsight, for a link that changes its speed at many moments, both ways."""
    loads_s = [A100_LOAD_S] * len(A100_S)
    case = Case(A100_S, tuple((Option(0, s),) for s in loads_s), 1)
    for moment_s in _MOMENTS:
        for factor in _FACTORS:
            lane = Speed(((0.0, 1.0), (moment_s, factor)))
            yield run_race(case, 1, (lane,), Speed(), (0.1,)) / best_prefix_at(A100_S, loads_s, lane)


def _planned(variant: str, n_chunks: int) -> Callable[[], object]:
    """Return what makes one plan of so many chunks."""
    one, four = make_case(0, n_chunks, 1), make_case(0, n_chunks, 4)
    ways = ways_of(four.compute_s, four.options, 4, [0.0] * n_chunks, Recompute.EXACT)
    loads_s, offered = one.load_s, make_levels(0, n_chunks)
    return {
        "P1": lambda: split_prefix(one.compute_s, loads_s),
        "P2": lambda: split_over_tiers(four.compute_s, four.options, 4),
        "P3": lambda: choose_set(ways, 4),
        "P4": lambda: Levels(*offered).least_time(0.1 * n_chunks),
        "P5": lambda: better_axis(split_prefix(one.compute_s, loads_s), split_layers([1.0] * 80, [1.0] * 80)),
    }[variant]


def _timed(plan: Callable[[], object], n_timed: int) -> list[float]:
    """Return how many milliseconds each of some plans took, behind a few that warm up."""
    seconds = []
    for repeat in range(n_timed + 5):
        started = time.perf_counter()
        plan()
        if repeat >= 5:
            seconds.append(1e3 * (time.perf_counter() - started))
    return seconds
