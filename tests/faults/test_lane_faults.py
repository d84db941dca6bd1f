"""Every lane through a proxy that stalls, resets, truncates, drops, repeats or flips: the right bytes, a miss or a typed error, in time."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvclient.lanes.choice import LaneName
from tests.faults.lane_lab import DEADLINE_S, LaneLab, measure, run_once
from tests.faults.soak import n_runs
from tests.server.chunks import make_service
from tests.server.leaks import leaving_nothing
from tests.server.serving import serving
from tests.server.ways import LANES

N_RUNS = n_runs(full=1000, short=30)
SLACK_S = 1.0  # for a busy machine


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """No thread and no open file, of client, server or proxy."""
    with leaving_nothing():
        yield
        request.node.funcargs.clear()


@pytest.fixture(params=LANES)
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LaneLab]:
    """A store, and one way to it."""
    service = make_service(max_blob_bytes=16 << 20)
    gc.disable()  # nothing that failed may wait for it
    lane: LaneName = request.param
    with serving(service) as server:
        yield LaneLab(service, server, lane, tmp_path)
    gc.enable()


def test_a_hurt_lane_gives_the_right_bytes_or_a_miss_or_a_typed_error_in_time(lab: LaneLab) -> None:
    """And after each run neither side holds a byte, a lease or a connection of it."""
    outcomes: Counter[str] = Counter()
    slowest_s = 0.0
    passed = measure(lab)
    for seed in range(N_RUNS):
        name, outcome, took_s, fault = run_once(lab, seed, passed)
        outcomes[outcome] += 1
        slowest_s = max(slowest_s, took_s)
        assert took_s < DEADLINE_S + SLACK_S, (seed, name, outcome, took_s, fault)
    print(f"{lab.lane}: {N_RUNS} runs, {dict(outcomes)}, slowest {slowest_s:.2f} s of {DEADLINE_S} s")
