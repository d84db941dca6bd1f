"""What became of a worker's requests, counted from their reports."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from kvclient.records import PassageReport, Report
from kvstore.core.histogram import Histogram

KEPT_REQUESTS = 1000
RATIOS = (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.11, 1.25, 1.5, 2.0, 4.0, 10.0)
ERRORS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0)


@dataclass(frozen=True)
class Answered:
    """One request: when it ended (seconds since 1970), whose it was, and its report."""

    at_s: float
    tenant: str
    report: Report


@dataclass
class TenantSums:
    """What one tenant's requests came to."""

    requests: int = 0
    loaded: int = 0
    recomputed: int = 0
    generated: int = 0


@dataclass
class Sums:
    """What all requests came to; a dictionary counts by its key."""

    tenants: dict[str, TenantSums] = field(default_factory=dict)
    plans: Counter[tuple[str, str]] = field(default_factory=Counter)  # policy and planner
    passages: Counter[tuple[str, str]] = field(default_factory=Counter)  # action, and tier or why it was computed
    tier_bytes: Counter[str] = field(default_factory=Counter)
    step_s: dict[str, float] = field(default_factory=dict)


class Ledger:
    """Keeps sums of all requests and the last thousand reports. Thread-safe; a request costs it some microseconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._sums = Sums()
        self._n_running = 0
        self._latest: deque[Answered] = deque(maxlen=KEPT_REQUESTS)
        self.ttft = Histogram()
        self.ratio = Histogram(RATIOS)  # of the time to the first token and its prediction
        self.error = Histogram(ERRORS)  # how far the prediction was off, as a share of what came

    @property
    def n_running(self) -> int:
        """Requests that have begun and not ended."""
        return self._n_running

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count a request as running within the block."""
        with self._lock:
            self._n_running += 1
        try:
            yield
        finally:
            with self._lock:
                self._n_running -= 1

    def record(self, tenant: str, report: Report) -> None:
        """Count an answered request."""
        self.ttft.add(report.ttft_s)
        if report.predicted_ttft_s > 0 < report.ttft_s:
            self.ratio.add(report.ttft_s / report.predicted_ttft_s)
            self.error.add(abs(report.predicted_ttft_s / report.ttft_s - 1))
        with self._lock:
            self._add(self._sums.tenants.setdefault(tenant, TenantSums()), report)
            self._latest.append(Answered(self._clock(), tenant, report))

    def tenants(self) -> Mapping[str, TenantSums]:
        """Return the sums of each tenant."""
        with self._lock:
            return {name: TenantSums(**vars(sums)) for name, sums in self._sums.tenants.items()}

    def counts(self) -> Sums:
        """Return a copy of all sums but those of tenants."""
        with self._lock:
            sums = self._sums
            return Sums({}, sums.plans.copy(), sums.passages.copy(), sums.tier_bytes.copy(), sums.step_s.copy())

    def latest(self) -> list[Answered]:
        """Return the last requests, oldest first."""
        with self._lock:
            return list(self._latest)

    def _add(self, sums: TenantSums, report: Report) -> None:
        """Add a report to the sums. Called with the lock held."""
        sums.requests += 1
        sums.loaded += report.tokens_loaded
        sums.recomputed += report.tokens_recomputed
        sums.generated += report.tokens_generated
        self._sums.plans[report.policy, report.planner] += 1
        for row in report.passages:
            self._sums.passages[row.action, what_became(row)] += 1
            if row.tier:
                self._sums.tier_bytes[row.tier] += row.nbytes
        for step, seconds in report.ttft_split_s.items():
            self._sums.step_s[step] = self._sums.step_s.get(step, 0.0) + seconds


def what_became(row: PassageReport) -> str:
    """Return the tier that a passage came from, or the word for why it was computed."""
    return row.tier if row.action == "load" else row.reason
