"""Time one operation and count the processor time of this process and of the servers that take part in it."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kvstore.core.errors import UnsupportedError


@dataclass(frozen=True)
class Budget:
    """How long an operation is repeated: until there were enough and `min_s` passed, or until `max_s` passed."""

    warm_ups: int = 3
    min_operations: int = 30
    min_s: float = 1.0
    max_s: float = 2.0

    def is_spent(self, n_operations: int, elapsed_s: float) -> bool:
        """Tell whether no further operation is to begin."""
        return elapsed_s >= (self.min_s if n_operations >= self.min_operations else self.max_s)


@dataclass(frozen=True)
class Operation:
    """What is measured.

    `tidy` runs after every `run`, outside of the time and of the processor time. `servers` are process ids whose processor time counts.
    """

    run: Callable[[], object]
    servers: tuple[int, ...] = ()
    tidy: Callable[[], object] | None = None


@dataclass(frozen=True)
class Timing:
    """What so many operations took; times in seconds."""

    n_operations: int
    total_s: float
    p50_s: float
    p99_s: float
    cpu_s: float

    @classmethod
    def of(cls, seconds: Sequence[float], cpu_s: float) -> Timing:
        """Summarise the times of single operations, of which there is at least one."""
        p50_s, p99_s = np.percentile(seconds, (50, 99))
        return cls(len(seconds), sum(seconds), float(p50_s), float(p99_s), cpu_s)

    def mb_per_s(self, nbytes: int) -> float:
        """Return 10^6 bytes per second over all operations of `nbytes`."""
        return self.n_operations * nbytes / self.total_s / 1e6

    def cpu_s_per_gb(self, nbytes: int) -> float:
        """Return processor seconds per 10^9 bytes."""
        return self.cpu_s / (self.n_operations * nbytes / 1e9)


class ProcessorClock:
    """Processor seconds, of user and system, of this process and of others; exact to the microsecond while they live."""

    def __init__(self, others: Sequence[int]) -> None:
        self._clocks = [_clock_of(pid) for pid in others]

    def read(self) -> float:
        """Return the sum now."""
        return time.process_time() + sum(map(time.clock_gettime, self._clocks))


def measure(operation: Operation, budget: Budget) -> Timing:
    """Run an operation repeatedly."""
    for _ in range(budget.warm_ups):
        operation.run()
        if operation.tidy:
            operation.tidy()
    clock = ProcessorClock(operation.servers)
    seconds: list[float] = []
    cpu_s = -clock.read()
    start = time.perf_counter()
    while not budget.is_spent(len(seconds), time.perf_counter() - start):
        before = time.perf_counter()
        operation.run()
        seconds.append(time.perf_counter() - before)
        if operation.tidy:
            cpu_s += clock.read()
            operation.tidy()
            cpu_s -= clock.read()
    return Timing.of(seconds, cpu_s + clock.read())


def _clock_of(pid: int) -> int:
    """Return the clock of a process; raises UnsupportedError where a process has none."""
    clock = ctypes.c_int()
    try:
        status = ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock))
    except AttributeError:
        status = -1
    if status:
        raise UnsupportedError(f"the processor time of process {pid} can't be read; the benchmark needs Linux and a living server")
    return clock.value
