"""The push queue holds a bounded number of bytes, whatever the store does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from kvstore.core.errors import ClosedError, TierUnavailableError
from kvworker.chunk import KVChunk, PassageKV
from kvworker.ingest.push import PushQueue
from tests.worker.waiting import until

NBYTES = 1024


def passage(nbytes: int = NBYTES) -> PassageKV:
    """Return KV of this size."""
    x = torch.zeros(1, 1, nbytes // 8, 1)
    return (KVChunk(x, x.clone()),)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Yield what jobs wait for; open behind the test."""
    gate = threading.Event()
    yield gate
    gate.set()


def test_a_full_queue_makes_the_pusher_wait_until_a_job_is_done(gate: threading.Event) -> None:
    """Three fit; the fourth waits without its bytes being counted."""
    queue = PushQueue(3 * NBYTES, n_threads=1)
    for _ in range(3):
        queue.submit(passage(), lambda _: gate.wait(30))
    with ThreadPoolExecutor(1) as threads:
        fourth = threads.submit(queue.submit, passage(), lambda _: True)
        until(lambda: fourth.running())
        assert (queue.used_bytes, fourth.done()) == (3 * NBYTES, False)
        gate.set()
        assert fourth.result(10).result(10)
    queue.close()
    assert queue.used_bytes == 0


def test_the_bytes_in_the_queue_never_exceed_its_capacity() -> None:
    """Many pushers of many sizes."""
    queue = PushQueue(4 * NBYTES)
    seen: list[int] = []

    def push(n: int) -> None:
        for i in range(30):
            queue.submit(passage(NBYTES * (1 + (n + i) % 3)), lambda _: seen.append(queue.used_bytes))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(push, range(4)))
    queue.close()
    assert (len(seen), queue.used_bytes) == (120, 0)
    assert max(seen) <= 4 * NBYTES


def test_a_passage_larger_than_the_queue_passes_alone(gate: threading.Event) -> None:
    """Otherwise it would wait forever."""
    queue = PushQueue(NBYTES)
    small = queue.submit(passage(), lambda _: gate.wait(30))
    with ThreadPoolExecutor(1) as threads:
        large = threads.submit(queue.submit, passage(8 * NBYTES), lambda kv: kv[0].nbytes)
        until(lambda: large.running())
        assert not large.done()
        gate.set()
        assert large.result(10).result(10) == 8 * NBYTES
    assert small.result(10)
    queue.close()


@pytest.mark.parametrize("error", [TierUnavailableError("down"), ZeroDivisionError("a bug")])
def test_a_job_that_fails_frees_its_bytes_and_its_future_tells(error: Exception) -> None:
    """Failures of the store must not fill the queue."""
    queue = PushQueue(NBYTES)

    def fail(kv: PassageKV) -> None:
        raise error

    futures = [queue.submit(passage(), fail) for _ in range(5)]
    assert [future.exception(10) for future in futures] == [error] * 5
    queue.close()
    assert queue.used_bytes == 0


def test_closing_finishes_what_is_queued(gate: threading.Event) -> None:
    """What was computed is worth storing."""
    queue = PushQueue(10 * NBYTES, n_threads=1)
    futures = [queue.submit(passage(), lambda _: gate.wait(30)) for _ in range(5)]
    gate.set()
    queue.close()
    assert all(future.done() for future in futures)


def test_closing_wakes_whoever_waits_for_room(gate: threading.Event) -> None:
    """With an error of ours, and nothing new gets in."""
    queue = PushQueue(NBYTES, n_threads=1)
    queue.submit(passage(), lambda _: gate.wait(30))
    with ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(queue.submit, passage(), lambda _: None)
        until(lambda: waiting.running())
        closing = threads.submit(queue.close)
        with pytest.raises(ClosedError):
            waiting.result(10)
        gate.set()
        closing.result(10)
    with pytest.raises(ClosedError):
        queue.submit(passage(), lambda _: None)
