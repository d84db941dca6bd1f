"""Calls under a deadline, and the queue that writes behind."""

from __future__ import annotations

import threading

import pytest

from kvstore.core.errors import DeadlineError, TierUnavailableError
from kvstore.store.calls import BoundedCalls
from kvstore.store.index import Slot
from kvstore.store.write_queue import Job, WriteQueue
from tests.store.chunks import make_chunk


def job(number: int, nbytes: int = 10) -> Job:
    """Return a job whose key says its number."""
    return Job(bytes([number]), Slot(make_chunk(0)[1], nbytes, nbytes), bytes(nbytes))


def test_a_call_that_hangs_costs_the_timeout_and_frees_its_thread_later() -> None:
    """While it hangs a further call is refused at once."""
    calls, gate = BoundedCalls(1), threading.Event()
    with pytest.raises(DeadlineError):
        calls.call(gate.wait, 0.02)
    with pytest.raises(TierUnavailableError, match="raise remote_threads"):
        calls.call(lambda: 1, 5.0)
    gate.set()
    assert calls._free.acquire(timeout=5.0)
    calls._free.release()
    assert [calls.call(lambda: 1, 5.0) for _ in range(100)] == [1] * 100
    calls.close()
    with pytest.raises(TierUnavailableError, match="closing"):
        calls.call(lambda: 1, 5.0)


def test_an_error_of_the_call_reaches_its_caller() -> None:
    """The thread in between changes nothing."""
    calls = BoundedCalls(1)
    with pytest.raises(KeyError):
        calls.call(lambda: {}["x"], 5.0)
    calls.close()


def test_a_queue_is_bounded_in_bytes_the_job_under_way_included() -> None:
    """Memory stays bounded however slow the tier is; a key that waits is not queued twice."""
    gate, written = threading.Event(), []

    def write(done: Job) -> None:
        gate.wait()
        written.append(done.key[0])

    queue = WriteQueue("test", 35, write)
    assert [queue.offer(job(n)) for n in (0, 1, 2, 3)] == [True, True, True, False]
    assert queue.offer(job(2))
    assert queue.waiting_bytes == 30
    assert not queue.wait_idle(0.01)
    gate.set()
    assert queue.wait_idle(5.0)
    assert (written, queue.waiting_bytes) == ([0, 1, 2], 0)
    queue.close(5.0)
    assert not queue.offer(job(4))


def test_a_cancelled_job_is_not_written() -> None:
    """One that is being written is waited for, as long as the caller says."""
    gate, started, written = threading.Event(), threading.Event(), []

    def write(done: Job) -> None:
        started.set()
        gate.wait()
        written.append(done.key[0])

    queue = WriteQueue("test", 100, write)
    queue.offer(job(0))
    queue.offer(job(1))
    started.wait(5.0)
    queue.cancel(bytes([1]), 5.0)
    queue.cancel(bytes([0]), 0.01)
    gate.set()
    assert queue.wait_idle(5.0)
    assert written == [0]
    queue.close(5.0)
