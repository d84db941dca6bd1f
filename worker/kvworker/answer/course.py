"""One request under way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from kvstore.planners.plan import Load, Plan, Request
from kvstore.planners.samples import Manner, PrefillSample
from kvworker.answer.load import DeviceSource, StoredSource
from kvworker.answer.prompt import Asked, Prompt, Stored
from kvworker.quality.gate import Choice


class Timing:
    """Seconds per step of one request; `wait_s` is the part of prefill that waited for chunks."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.wait_s = 0.0
        self.ttft_s = 0.0

    @contextmanager
    def queue(self, lock: threading.Lock) -> Iterator[None]:
        """Hold a lock; the wait for it is a step of its own, so that other requests do not count as this one's work."""
        with self.measure("queue"):
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def measure(self, step: str) -> Iterator[None]:
        """Add the duration of a block to a step."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - started

    def split(self) -> dict[str, float]:
        """Return lookup, plan, queue (for the model), load (for chunks) and prefill in seconds: together the time to the first token."""
        known = {step: self.seconds.get(step, 0.0) for step in ("lookup", "plan", "queue", "prefill")}
        wait_s = min(self.wait_s, known["prefill"])
        return {**known, "load": wait_s, "prefill": known["prefill"] - wait_s}


@dataclass
class Course:
    """One request under way: what was asked for, what was decided, and what it took so far.

    `read` has the reading that each passage of the prompt is in, None where it has none that may be used. `is_binding` says that the
    planner wants its plan followed, `target` what a target for the first token changed. `sources` and `failures` tell what was loaded, and
    why what was asked for was not.
    """

    prompt: Prompt
    choice: Choice
    planner: str
    asked: Sequence[Asked]
    read: Sequence[Stored | None]
    request: Request
    plan: Plan
    is_binding: bool
    timing: Timing
    target: str = ""
    sources: dict[int, DeviceSource | StoredSource] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    rows: tuple[int, ...] = ()
    samples: list[PrefillSample] = field(default_factory=list)
    last_step: PrefillSample | None = None
    manner: Manner = field(init=False)
    planned_s: float | None = field(init=False)
    predicted_s: float | None = field(init=False)
    n_generated: int = 0

    def __post_init__(self) -> None:
        """Predict what was planned until something else is done."""
        self.manner = Manner.RACED if any(isinstance(item, Load) for item in self.plan.items) else Manner.COMPUTED
        self.planned_s, self.predicted_s = self.plan.planned_s, self.plan.predicted_s
