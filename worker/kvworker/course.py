"""One request under way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from kvstore.core.api import Hit
from kvstore.planners.plan import Plan
from kvworker.engine import ChunkSource
from kvworker.policy import RecomputePolicy
from kvworker.prompt import Prompt


class Timing:
    """Seconds per step of one request; `wait_s` is the part of prefill that waited for chunks."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.wait_s = 0.0
        self.ttft_s = 0.0

    @contextmanager
    def measure(self, step: str) -> Iterator[None]:
        """Add the duration of a block to a step."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - started

    def split(self) -> dict[str, float]:
        """Return lookup, plan, load and prefill in seconds; they add up to the time to the first token but for sampling it."""
        known = {step: self.seconds.get(step, 0.0) for step in ("lookup", "plan", "prefill")}
        wait_s = min(self.wait_s, known["prefill"])
        return {"lookup": known["lookup"], "plan": known["plan"], "load": wait_s, "prefill": known["prefill"] - wait_s}


@dataclass
class Course:
    """One request under way: what was decided, and what it took so far."""

    prompt: Prompt
    policy: RecomputePolicy
    planner: str
    hits: list[Hit]
    plan: Plan
    timing: Timing
    sources: dict[int, ChunkSource] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)
    n_generated: int = 0
