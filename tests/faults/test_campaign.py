"""Everything around the workers fails in turn, under load: answers are the computed ones, in time, and nothing is left behind.

A short form runs with all tests; `make soak` goes on for LARDER_SOAK_S seconds, an hour unless that says otherwise.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from kvstore.server.config import RedisConfig
from kvstore.store.results import StoreSettings
from kvworker.reference.notes import generate
from kvworker.settings import WorkerSettings
from tests.faults.campaign.awake import Awake
from tests.faults.campaign.callers import DEADLINE_S, Callers, Question, Tally, ask
from tests.faults.campaign.footprint import Footprint, footprint, reading
from tests.faults.campaign.harms import FAULTS, Fault
from tests.faults.campaign.plant import MOST_CALLS, Plant
from tests.faults.soak import n_runs
from tests.pool.ray_warnings import RAY_WARNINGS
from tests.worker.waiting import until

SEED = 22
N_DOCUMENTS, N_PASSAGES = 8, 3
N_CALLERS = 3
WARM_S = 1.0
FAULT_S = 0.4 if n_runs(0, 1) else 8.0
SOAK_S = float(os.environ.get("LARDER_SOAK_S", "3600"))
RECOVERY_S = 10.0
RECOVERED_SHARE, OVER_S = 0.5, 0.3  # of the rate before any fault, over so long
SLACK_BYTES = 32 << 20
SLACK_FILES = 6 * RedisConfig().connections + 6  # to each server of the cluster, since pools of connections grow when they are needed
RAY_FILES = n_runs(200, 0)  # what Ray may keep of nodes that died, in the process that started them: the front's
POOLS = {  # which grow when they are first needed, and how far
    "rpc": MOST_CALLS,
    "larder-remote": StoreSettings().remote_threads,
    "larder-stores": 2 * 16,  # a worker is a client of the stores, and its callers' one
    "load": WorkerSettings().load_threads,
    "push": 2,
    "restore": 1,
    "first-answer": 4 * N_CALLERS,  # half of them of workers that were not waited for
    "event_engine": 2 * 16,  # gRPC keeps so many at most while nothing happens; Ray has a gRPC of its own
    "client.poll": 64,  # Ray's own
}
SETTLE_S = 30.0

pytestmark = [
    pytest.mark.timeout(300 if n_runs(0, 1) else SOAK_S + 900),
    *(pytest.mark.filterwarnings(warning) for warning in RAY_WARNINGS * n_runs(1, 0)),
]


@dataclass(frozen=True)
class Line:
    """What became of one fault, or of several of a kind."""

    fault: str
    n_answers: int = 0
    slowest_s: float = 0.0
    recovery_s: float = 0.0

    def __add__(self, other: Line) -> Line:
        """Return all answers, and the worst of both."""
        worst = max(self.slowest_s, other.slowest_s), max(self.recovery_s, other.recovery_s)
        return Line(self.fault, self.n_answers + other.n_answers, *worst)

    def __str__(self) -> str:
        return f"{self.fault:36} {self.n_answers:5} answers, slowest {self.slowest_s:5.2f} s, back after {self.recovery_s:5.2f} s"


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """Start stores, Redis, workers and a front."""
    with Plant(tmp_path_factory.mktemp("campaign"), seed=SEED) as plant:
        yield plant


def questions(plant: Plant) -> dict[Question, list[int]]:
    """Store documents, and compute the answer to a question about each."""
    corpus = generate(SEED, N_DOCUMENTS, N_PASSAGES, 4, "test")
    expected: dict[Question, list[int]] = {}
    with plant.larder() as larder:
        for n, document in enumerate(corpus.documents):
            ids = larder.ingest(f"{n}.txt", document.passages).ids
            question = Question(f"{n}.txt", tuple(ids), next(q.text for q in corpus.questions if q.passages[-1][0] == n))
            expected[question], _ = ask(larder, question, "always_compute")
    return expected


def schedule(rng: random.Random, faults: Mapping[str, Fault]) -> Iterator[str]:
    """Yield every fault once in a drawn order, and in a soak run as many rounds of that as there is time for."""
    ends_s = time.monotonic() + n_runs(int(SOAK_S), 0)
    while True:
        yield from rng.sample(sorted(faults), len(faults))
        if time.monotonic() > ends_s:
            return


def recovery(tally: Tally, rate: float, clock: Awake) -> float:
    """Wait until answers come at half the rate again, or long enough; return how long that took."""
    ended_s = clock.now_s()
    while (now_s := clock.now_s()) < ended_s + RECOVERY_S:
        if now_s - ended_s >= OVER_S and tally.rate(now_s - OVER_S, now_s) >= RECOVERED_SHARE * rate:
            break
        time.sleep(0.02)
    return now_s - ended_s


def suffer(plant: Plant, name: str, fault: Fault, rng: random.Random, tally: Tally, rate: float, clock: Awake) -> Line:
    """Do one harm for a while, mend it, and wait until it is got over."""
    n_before = len(tally.took_s)
    with fault(plant, rng):
        time.sleep(FAULT_S)
    recovery_s = recovery(tally, rate, clock)
    took_s = tally.took_s[n_before:]
    return Line(name, len(took_s), max(took_s, default=0.0), recovery_s)


def footprints(plant: Plant) -> dict[str, Footprint]:
    """Measure this process and those of the plant."""
    return {"front": footprint(os.getpid()), **{name: footprint(p.popen.pid) for name, p in plant.processes().items()}}


def excess(plant: Plant, before: dict[str, Footprint]) -> list[str]:
    """Wait until every process holds no more than at the start, or long enough; say what is too much.

    Nobody asks any more, so no lease is left.
    """
    ends_s = time.monotonic() + SETTLE_S
    while True:
        now = footprints(plant)
        slack = {name: SLACK_FILES + (RAY_FILES if name == "front" else 0) for name in now}
        found = [f"{name}: {what}" for name in now for what in now[name].exceeds(before[name], SLACK_BYTES, slack[name], POOLS)]
        leases = [reading(store.process.pages, "larder_leases") for store in plant.stores]
        found += [f"store {number}: {count} leases" for number, count in enumerate(leases) if count]
        if not found or time.monotonic() > ends_s:
            return found
        time.sleep(0.2)


def summary(lines: list[Line], rate: float) -> str:
    """Return a line for each fault: how often it was done, and the worst that came of it."""
    of_a_kind = {name: [line for line in lines if line.fault == name] for name in sorted({line.fault for line in lines})}
    rows = [f"{len(same):4} x {sum(same, Line(name))}" for name, same in of_a_kind.items()]
    return "\n".join([f"{len(lines)} faults, {rate:.1f} answers a second before any", *rows])


@pytest.fixture(scope="module")
def faults(plant: Plant) -> Iterator[Mapping[str, Fault]]:
    """Yield what is done; in a soak run a Ray node with a worker of the plant dies, too, for which `tests/pool` has a short form."""
    with ExitStack() as stack:
        if n_runs(1, 0):
            from tests.faults.campaign.ray_nodes import beside

            yield {**FAULTS, "ray node killed": stack.enter_context(beside(plant)).node_killed}
        else:
            yield FAULTS


def test_a_campaign_of_faults_changes_no_answer_and_leaves_nothing_behind(plant: Plant, faults: Mapping[str, Fault]) -> None:
    """Never wrong, never down: no request fails or exceeds its deadline, and the rate is back within 10 s of each fault's end."""
    rng, lines = random.Random(SEED), list[Line]()
    expected = questions(plant)
    with Awake() as clock, Callers(plant.address, plant.token, expected, clock).asking(N_CALLERS) as tally:
        time.sleep(WARM_S)
        before, started_s = footprints(plant), clock.now_s()
        time.sleep(WARM_S)
        rate = tally.rate(started_s, clock.now_s())
        assert tally.loaded_all_at_s > started_s
        for name in schedule(rng, faults):
            if lines and len(lines) % len(faults) == 0:
                print(*(f"{kind}: {held}" for kind, held in footprints(plant).items()), sep="\n", flush=True)
            if len(lines) == len(faults):  # caches are full by now; what still grows is a leak
                before = footprints(plant)
            lines.append(suffer(plant, name, faults[name], rng, tally, rate, clock))
            print(f"{clock.now_s() - started_s:6.0f} s  {lines[-1]}", flush=True)
        ended_s = clock.now_s()
        until(lambda: tally.loaded_all_at_s > ended_s, RECOVERY_S)  # what was lost is stored again
    print(summary(lines, rate), f"{clock.lost_s:.0f} s stood still, {tally.n_unjudged} requests failed then", sep="\n")
    assert tally.wrong == []
    assert max(tally.took_s) < DEADLINE_S
    assert [str(line) for line in lines if line.recovery_s >= RECOVERY_S] == []
    found = excess(plant, before)
    assert not found, found
