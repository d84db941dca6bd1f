"""Everything around the workers fails in turn, under load: answers are the computed ones, in time, and nothing is left behind.

A short form runs with all tests; `make soak` goes on for LARDER_SOAK_S seconds, an hour unless that says otherwise.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from kvclient import Larder
from kvworker.reference.notes import generate
from tests.faults.campaign.callers import DEADLINE_S, Callers, Question, Tally, ask
from tests.faults.campaign.footprint import Footprint, footprint
from tests.faults.campaign.harms import FAULTS
from tests.faults.campaign.plant import Plant
from tests.faults.soak import n_runs
from tests.worker.waiting import until

SEED = 22
N_DOCUMENTS, N_PASSAGES = 8, 3
N_CALLERS = 3
WARM_S = 1.5
FAULT_S = 0.5 if n_runs(0, 1) else 8.0
SOAK_S = float(os.environ.get("LARDER_SOAK_S", "3600"))
RECOVERY_S = 10.0
RECOVERED_SHARE, OVER_S = 0.5, 0.3  # of the rate before any fault, over so long
SLACK_BYTES, SLACK_THREADS, SLACK_FILES = 64 << 20, 6, 6
SETTLE_S = 20.0

pytestmark = pytest.mark.timeout(300 if n_runs(0, 1) else SOAK_S + 900)


@dataclass(frozen=True)
class Line:
    """What became of one fault."""

    fault: str
    n_answers: int
    slowest_s: float
    recovery_s: float

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
    with Larder(plant.address, plant.token, timeout_s=60.0) as larder:
        for n, document in enumerate(corpus.documents):
            ids = larder.ingest(f"{n}.txt", document.passages).ids
            question = Question(f"{n}.txt", tuple(ids), next(q.text for q in corpus.questions if q.passages[-1][0] == n))
            expected[question], _ = ask(larder, question, "always_compute")
    return expected


def schedule(rng: random.Random) -> Iterator[str]:
    """Yield every fault once in a drawn order, and in a soak run as many rounds of that as there is time for."""
    ends_s = time.monotonic() + n_runs(int(SOAK_S), 0)
    while True:
        yield from rng.sample(sorted(FAULTS), len(FAULTS))
        if time.monotonic() > ends_s:
            return


def recovery(tally: Tally, rate: float) -> float:
    """Wait until answers come at half the rate again, or long enough; return how long that took."""
    ended_s = time.monotonic()
    while (now_s := time.monotonic()) < ended_s + RECOVERY_S:
        if now_s - ended_s >= OVER_S and tally.rate(now_s - OVER_S, now_s) >= RECOVERED_SHARE * rate:
            break
        time.sleep(0.02)
    return now_s - ended_s


def suffer(plant: Plant, fault: str, rng: random.Random, tally: Tally, rate: float) -> Line:
    """Do one harm for a while, mend it, and wait until it is got over."""
    n_before = len(tally.took_s)
    with FAULTS[fault](plant, rng):
        time.sleep(FAULT_S)
    recovery_s = recovery(tally, rate)
    took_s = tally.took_s[n_before:]
    line = Line(fault, len(took_s), max(took_s, default=0.0), recovery_s)
    print(line, flush=True)
    return line


def footprints(plant: Plant) -> dict[str, Footprint]:
    """Measure this process and those of the plant."""
    return {"front": footprint(os.getpid()), **{name: footprint(p.popen.pid) for name, p in plant.processes().items()}}


def excess(plant: Plant, before: dict[str, Footprint]) -> list[str]:
    """Wait until every process holds no more than at the start, or long enough; say what is too much."""
    ends_s = time.monotonic() + SETTLE_S
    while True:
        now = footprints(plant)
        found = [f"{name}: {what}" for name in now for what in now[name].exceeds(before[name], SLACK_BYTES, SLACK_THREADS, SLACK_FILES)]
        if not found or time.monotonic() > ends_s:
            return found
        time.sleep(0.2)


def test_a_campaign_of_faults_changes_no_answer_and_leaves_nothing_behind(plant: Plant) -> None:
    """Never wrong, never down: no request fails or exceeds its deadline, and the rate is back within 10 s of each fault's end."""
    rng = random.Random(SEED)
    expected = questions(plant)
    callers = Callers(plant.address, plant.token, expected)
    with callers.asking(N_CALLERS) as tally:
        time.sleep(WARM_S)
        before, started_s = footprints(plant), time.monotonic()
        time.sleep(WARM_S)
        rate = tally.rate(started_s, time.monotonic())
        assert tally.loaded_all_at_s > started_s
        lines = [suffer(plant, fault, rng, tally, rate) for fault in schedule(rng)]
        ended_s = time.monotonic()
        until(lambda: tally.loaded_all_at_s > ended_s, RECOVERY_S)  # what was lost is stored again
    print(f"{rate:.1f} answers a second before any fault")
    assert tally.wrong == []
    assert max(tally.took_s) < DEADLINE_S
    assert [str(line) for line in lines if line.recovery_s >= RECOVERY_S] == []
    assert excess(plant, before) == []
