"""Encode and store chunks behind the model's back: a queue bounded in bytes, drained by a few threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from kvstore.core import tracing
from kvstore.core.errors import ClosedError
from kvworker.chunk import PassageKV

T = TypeVar("T")


class PushQueue:
    """Runs jobs that hold KV, with at most `capacity_bytes` of KV waiting or being pushed; thread-safe.

    One job may exceed the capacity when nothing else is queued, so that no passage is too large to be pushed.
    """

    def __init__(self, capacity_bytes: int, n_threads: int = 2) -> None:
        self._capacity_bytes = capacity_bytes
        self._used_bytes = 0
        self._room = threading.Condition()
        self._is_closed = False
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="push")

    @property
    def used_bytes(self) -> int:
        """Bytes of KV that are waiting or being pushed."""
        return self._used_bytes

    def submit(self, kv: PassageKV, job: Callable[[PassageKV], T]) -> Future[T]:
        """Run `job(kv)` on a thread of the queue; blocks while the queue is full. Raises ClosedError after `close`."""
        nbytes = sum(chunk.nbytes for chunk in kv)
        with self._room:
            self._room.wait_for(lambda: self._is_closed or self._used_bytes == 0 or self._used_bytes + nbytes <= self._capacity_bytes)
            if self._is_closed:
                raise ClosedError("the push queue is closed")
            self._used_bytes += nbytes
            future = self._pool.submit(tracing.carried(partial(job, kv)))
        future.add_done_callback(lambda _: self._free(nbytes))
        return future

    def close(self) -> None:
        """Finish what is queued and take nothing new."""
        with self._room:
            self._is_closed = True
            self._room.notify_all()
        self._pool.shutdown(wait=True)

    def _free(self, nbytes: int) -> None:
        with self._room:
            self._used_bytes -= nbytes
            self._room.notify_all()
