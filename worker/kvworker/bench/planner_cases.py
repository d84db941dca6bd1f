"""Seeded requests for planners: costs that rise along the prompt as attention makes them, and loads of every speed around them."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from kvstore.planners.makespan import Option
from kvstore.planners.parallel_tiers import split_over_tiers
from kvstore.planners.race import Race
from kvstore.planners.share_out import Work
from kvstore.planners.simulate import Speed, World, simulate

# Seconds per chunk of 512 tokens, 7 B parameters, A100 (Cake, 2410.03065): 38.8 ms for the first of 64 chunks, 112 ms for the last.
A100_S = tuple(0.0388 + (0.112 - 0.0388) * i / 63 for i in range(64))
A100_LOAD_S = 0.0624  # one such chunk at 32 Gbit/s
_LEVELS = ((1.0, 0.0), (0.6, 0.02), (0.35, 0.1), (0.2, 0.4))  # share of the bytes, and the loss: 16, 8, 4 and 2 bits or so


@dataclass(frozen=True)
class Case:
    """One request: seconds of computing each chunk, and of each way to load it."""

    compute_s: tuple[float, ...]
    options: tuple[tuple[Option, ...], ...]
    n_lanes: int

    @property
    def load_s(self) -> list[float]:
        """Seconds of loading each chunk over the only lane."""
        return [found[0].seconds for found in self.options]

    def work(self) -> Work:
        """Return the case for a race, over the tiers that P2 chose where it loads, else over the quickest."""
        planned = split_over_tiers(self.compute_s, self.options, self.n_lanes).tiers
        chosen = [
            min(found, key=lambda o, tier=tier: (o.lane != tier, o.seconds))  # type: ignore[misc]
            for found, tier in zip(self.options, planned, strict=True)
        ]
        return Work(self.compute_s, [o.lane for o in chosen], [o.seconds for o in chosen], [0.0] * len(chosen))


def make_case(seed: int, n_chunks: int, n_lanes: int) -> Case:
    """Return a request whose lanes differ in speed, in latency and in what they hold; some chunks are stored in two sizes."""
    rng = random.Random(seed)
    first_s, slope = 10 ** rng.uniform(-2, 0), rng.choice((0.0, rng.uniform(0, 0.2)))
    sizes = [1.0] * n_chunks if rng.random() < 0.5 else [rng.uniform(0.3, 1.0) for _ in range(n_chunks)]
    compute_s = tuple(first_s * size * (1 + slope * i) for i, size in enumerate(sizes))
    speeds = [first_s * 10 ** rng.uniform(-1, 1) for _ in range(n_lanes)]
    options = []
    for size in sizes:
        lanes = sorted(rng.sample(range(n_lanes), rng.randint(1, n_lanes)))
        options.append(tuple(Option(lane, speeds[lane] * (0.1 + 0.9 * size) * rng.choice((1.0, 1.0, 0.5))) for lane in lanes))
    return Case(compute_s, tuple(options), n_lanes)


def make_levels(seed: int, n_chunks: int) -> tuple[tuple[float, ...], np.ndarray, np.ndarray]:
    """Return costs of computing, and seconds and losses (n, 4) of four levels per chunk, the best one first and without loss."""
    rng = random.Random(seed)
    case = make_case(seed, n_chunks, 1)
    shares, losses = np.array(_LEVELS).T
    return case.compute_s, np.outer(case.load_s, shares), np.outer([rng.uniform(0.5, 1.5) for _ in range(n_chunks)], losses)


def run_race(case: Case, step_chunks: int, lanes: tuple[Speed, ...], device: Speed, lane_errors: tuple[float, ...]) -> float:
    """Return how long a race takes whose costs are right at speed 1, in a world of the given speeds."""
    race = Race(case.work(), case.options, [1] * len(case.compute_s), lane_errors, step_rows=step_chunks)
    loads = [[next((o.seconds for o in found if o.lane == lane), 0.0) for found in case.options] for lane in range(case.n_lanes)]
    return simulate(race, World(case.compute_s, loads, lanes, device=device)).seconds
