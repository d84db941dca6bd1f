"""Store and worker as processes of their own that share a tokens file: the store may die and come back while the worker answers."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvclient import Larder, Report
from kvstore.core.errors import DeadlineError, KVError
from tests.e2e.processes import Process, kill, stop
from tests.forked import fork
from tests.worker.waiting import until

TEXTS = [f"Passage {i} of a document that outlives its store." for i in range(4)]
QUESTION = " What?"


@dataclass
class Pair:
    """A worker and its store; the store may be replaced."""

    store: Process
    worker: Process

    def restart_store(self) -> None:
        """Start the store again at its address."""
        self.store = fork(self.store.home, *self.store.command[:-1], self.store.address)


@pytest.fixture(scope="module")
def pair(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Run a store and a worker; stop both."""
    home = tmp_path_factory.mktemp("split")
    store = fork(home, "store", "--memory", "32MiB", "--disk", "64MiB", "--address", "127.0.0.1:0")
    worker = fork(home, "worker", "--model", str(model), "--store", store.address, "--address", "127.0.0.1:0")
    pair = Pair(store, worker)
    yield pair
    assert stop(pair.worker) == 0
    assert stop(pair.store) == 0
    assert "Traceback" not in pair.worker.log


@pytest.fixture
def larder(pair: Pair) -> Iterator[Larder]:
    """Connect to the worker."""
    with Larder(pair.worker.address, pair.worker.token, timeout_s=30) as larder:
        yield larder


def ask(larder: Larder, ids: list[str]) -> tuple[list[int], Report, float]:
    """Ask, loading all that is stored; return the answer's tokens, its report and the seconds that it took."""
    started = time.perf_counter()
    answer = larder.ask(ids, QUESTION, max_tokens=6, policy="none", planner="always_load").finish()
    return [token.id for token in answer.tokens], answer.report, time.perf_counter() - started


def ready(larder: Larder, ids: list[str]) -> bool:
    """Tell whether the store has every chunk."""
    return all(chunk.blob is not None for chunk in larder.chunks(ids))


def test_a_worker_serves_from_a_store_elsewhere(pair: Pair, larder: Larder) -> None:
    """Chunks can be fetched from the store that the worker names."""
    ids = larder.ingest("split.txt", TEXTS).ids
    assert larder.info().store_address == pair.store.address
    assert ready(larder, ids)
    _, report, _ = ask(larder, ids)
    assert {row.action for row in report.passages} == {"load"}


def test_answers_go_on_while_the_store_is_dead_and_chunks_come_back_with_it(pair: Pair, larder: Larder) -> None:
    """Killed, not stopped: what was acknowledged as durable or not, the answers are the same, and soon loaded again."""
    ids = larder.ingest("split.txt", TEXTS).ids
    before, _, _ = ask(larder, ids)
    fresh = larder.ingest("never-asked.txt", ["A passage that no device copy exists of."]).ids
    kill(pair.store)
    after, _, took_s = ask(larder, ids)
    assert after == before
    assert took_s < 10
    _, lost, _ = ask(larder, fresh)
    assert [(row.action, row.reason in ("unavailable", "timeout", "breaker")) for row in lost.passages] == [("compute", True)]
    pair.restart_store()
    until(lambda: {row.action for row in ask(larder, [*ids, *fresh])[1].passages} == {"load"}, timeout_s=20)
    until(lambda: ready(larder, [*ids, *fresh]), timeout_s=20)
    assert ask(larder, ids)[0] == before


def test_a_dead_store_costs_every_question_little(pair: Pair, larder: Larder) -> None:
    """Nothing listens at its address: that is known at once, whatever is tried again."""
    ids = larder.ingest("split.txt", TEXTS).ids
    kill(pair.store)
    took = sorted(ask(larder, ids)[2] for _ in range(5))
    pair.restart_store()
    until(lambda: ready(larder, ids), timeout_s=20)
    assert took[2] < 1.0


def test_what_the_store_lost_with_its_disk_is_stored_again_behind_an_answer(pair: Pair, larder: Larder) -> None:
    """Nobody has to ingest again."""
    ids = larder.ingest("emptied.txt", ["This chunk is deleted.", "And this one."]).ids
    larder.invalidate(source="emptied.txt")
    assert not ready(larder, ids)
    until(lambda: bool(ask(larder, ids)) and ready(larder, ids), timeout_s=20)


def test_ingest_into_a_dead_store_fails_with_an_error_that_may_be_tried_again(pair: Pair, larder: Larder) -> None:
    """And succeeds when the store is back."""
    kill(pair.store)
    with pytest.raises(KVError) as raised:
        larder.ingest("late.txt", ["Comes too early."], timeout_s=5)
    pair.restart_store()
    assert raised.value.retryable or isinstance(raised.value, DeadlineError)
    until(lambda: stored(larder), timeout_s=20)


def stored(larder: Larder) -> bool:
    """Tell whether the store takes a passage."""
    try:
        return bool(larder.ingest("late.txt", ["Comes too early."], timeout_s=5).ids)
    except KVError:
        return False


def test_a_store_that_hangs_is_waited_for_within_its_deadline(pair: Pair, larder: Larder) -> None:
    """It holds its connections and says nothing: one lookup has 2 s, the other questions don't ask it, and nothing comes from it."""
    ids = larder.ingest("split.txt", TEXTS).ids
    before, _, _ = ask(larder, ids)
    pair.store.popen.send_signal(signal.SIGSTOP)
    try:
        answers = [ask(larder, ids) for _ in range(4)]
    finally:
        pair.store.popen.send_signal(signal.SIGCONT)
    assert [tokens for tokens, _, _ in answers] == [before] * 4
    assert {row.tier for _, report, _ in answers for row in report.passages if row.action == "load"} <= {"device"}
    assert max(took_s for _, _, took_s in answers) < 4
    assert sum(took_s > 1 for _, _, took_s in answers) <= 1
