"""Records that wait to be written to one tier, bounded in bytes, and the thread that writes them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from kvstore.core.blob import Buffer
from kvstore.store.index import Slot


@dataclass(frozen=True)
class Job:
    """One record on its way to a tier; `data` is the whole record and stays unchanged until it is written.

    `found_at` is the tier that a record to be copied up came from, whose bytes nobody has verified yet; None for one that was put.
    """

    key: bytes
    slot: Slot
    data: Buffer
    found_at: int | None = None


class WriteQueue:
    """Writes in the order of arrival; a key waits at most once. `write` must not raise."""

    def __init__(self, name: str, capacity_bytes: int, write: Callable[[Job], None]) -> None:
        self._capacity_bytes = capacity_bytes
        self._write = write
        self._changed = threading.Condition()
        self._jobs: OrderedDict[bytes, Job] = OrderedDict()
        self._current: bytes | None = None
        self._waiting_bytes = 0
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name=f"larder-write-{name}", daemon=True)
        self._thread.start()

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the records that wait or are being written."""
        with self._changed:
            return self._waiting_bytes

    def offer(self, job: Job) -> bool:
        """Take a job; False when it does not fit or the queue is closed. A key that waits already is taken as done."""
        with self._changed:
            if job.key in self._jobs:
                return True
            if self._is_closed or self._waiting_bytes + len(job.data) > self._capacity_bytes:
                return False
            self._jobs[job.key] = job
            self._waiting_bytes += len(job.data)
            self._changed.notify_all()
            return True

    def cancel(self, key: bytes, timeout_s: float) -> None:
        """Drop a waiting job; if it is being written, wait for that, at most `timeout_s`."""
        with self._changed:
            if job := self._jobs.pop(key, None):
                self._waiting_bytes -= len(job.data)
            self._changed.wait_for(lambda: self._current != key, timeout_s)

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until nothing waits and nothing is being written; False when that took longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs and self._current is None, timeout_s)

    def close(self, timeout_s: float) -> None:
        """Take no more jobs, drop those that wait, and wait for the one being written."""
        with self._changed:
            self._is_closed = True
            self._jobs.clear()
            self._changed.notify_all()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while job := self._next():
            self._write(job)
            with self._changed:
                self._current = None
                self._waiting_bytes -= len(job.data)
                self._changed.notify_all()
            del job  # its view keeps a block of memory in use

    def _next(self) -> Job | None:
        """Wait for a job; None when the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._is_closed)
            if self._is_closed:
                return None
            self._current, job = self._jobs.popitem(last=False)
            return job
