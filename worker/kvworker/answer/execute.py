"""Carry out what a controller decides for one prompt: start loads, run steps, stop them between layers, finish.

The request's own thread runs the engine; loader threads report arrivals. Whoever has news hands it to the controller under one lock, so
that a lane is refilled while a layer runs. The engine's lock is held per step only, and never while there is nothing but waiting to do.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from kvstore.core.errors import KVError
from kvstore.core.identity import KVLayout
from kvstore.planners.plan import Offer
from kvstore.planners.race_events import (
    Abandon,
    Action,
    Arrived,
    BetweenLayers,
    Cancel,
    Compute,
    Event,
    Failed,
    Fetch,
    Finish,
    StepDone,
    StepStopped,
    Tick,
    Wait,
)
from kvstore.planners.samples import PrefillSample
from kvworker.answer.course import Timing
from kvworker.answer.load import DeviceSource, StoredSource
from kvworker.answer.straight import Controller
from kvworker.chunk import KVChunk
from kvworker.engine.engine import CodedKV, Generation, LoadFailed, Prefill, Segment, spans_of, unsourced

LATE = "timeout"
SOONER = "computing was done sooner"
_TICK_S = 0.005  # how often a controller is asked that let its own time pass
_LONGEST_S = 1.0  # of one wait without news; what never comes is noticed by the controller's times
_log = logging.getLogger(__name__)


class Fetches(Protocol):
    """Where the chunks of one request come from."""

    def open(self, chunk: int, offer: Offer) -> DeviceSource | StoredSource:
        """Return the source of a chunk in the offered form."""

    def start(self, lane: int, sources: Sequence[StoredSource]) -> None:
        """Have chunks fetched over a lane, behind those started before."""

    def release(self, source: StoredSource) -> None:
        """Say that a source is not waited for any more."""


@dataclass
class Job:
    """What is to be done.

    Parameters
    ----------
    controller : Controller
        Decides; its chunks are the segments.
    offers : sequence of mappings of lane to Offer
        What can be loaded of each segment; empty for one that is always computed.
    begin : callable of segments
        Starts the prompt.
    end : callable of a prompt under way
        Repairs what was loaded and returns the answer: a recompute policy's `finish`.
    layout : KVLayout
        The model's layers and their groups.
    is_pipelined : bool
        Whether `end` needs one layer group after the other.
    is_raced : bool
        Whether computing may overtake loading, so that chunks are worth having one by one.
    """

    controller: Controller
    segments: Sequence[Segment]
    offers: Sequence[Mapping[int, Offer]]
    begin: Callable[[Sequence[Segment]], Prefill]
    end: Callable[[Prefill], Generation]
    layout: KVLayout
    is_pipelined: bool = True
    is_raced: bool = False


@dataclass
class Outcome:
    """What happened: the sources that were used, why others that were begun were not, by chunk, and what computing took.

    `last_step` landed what was loaded besides; it is None where that was not each row once through each layer.
    """

    used: dict[int, DeviceSource | StoredSource] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    samples: list[PrefillSample] = field(default_factory=list)
    last_step: PrefillSample | None = None
    n_steps: int = 0
    n_abandoned: int = 0


@dataclass(frozen=True)
class _Awaited:
    """What the engine sees as the source of a segment: whatever its chunk's load is at the time."""

    execution: Execution
    chunk: int

    def group(self, index: int) -> KVChunk | CodedKV:
        """Wait for a layer group; raises LoadFailed when the controller gives up the step."""
        return self.execution.group(self.chunk, index)


class Execution:
    """One prompt under way. `run` it once, and `close` it in any case."""

    def __init__(self, job: Job, fetches: Fetches, engine_lock: threading.Lock, timing: Timing) -> None:
        self._job, self._fetches, self._engine_lock, self._timing = job, fetches, engine_lock, timing
        self._segments = [replace(s, source=_Awaited(self, i)) if job.offers[i] else s for i, s in enumerate(job.segments)]
        self._spans = spans_of(self._segments)
        self._sources: dict[int, DeviceSource | StoredSource] = {}
        self._held: list[StoredSource] = []
        self._news: deque[Event] = deque()
        self._next: Compute | Finish | Wait | None = None
        self._is_handling = self._is_abandoned = False
        self._awaited: tuple[StoredSource, int] | None = None
        self._tick_s = math.inf
        self._bell = threading.Condition()
        self._n_layers = sum(len(group.layers) for group in job.layout.groups)
        self.outcome = Outcome()

    def run(self) -> Generation:
        """Return the answer as soon as it can be had. Whatever loading does, it ends as computing."""
        with self._engine():
            prefill = self._job.begin(self._segments)
        try:
            return self._run(prefill)
        except KVError as error:
            _log.warning("a stored chunk could not be used, so everything is computed: %s", error)
        self.outcome.failures |= dict.fromkeys(self._sources, "others failed")
        self._sources.clear()
        with self._engine():
            return self._job.end(self._job.begin([replace(s, source=None) for s in self._segments]))

    def close(self) -> None:
        """Let go of everything that is still on its way."""
        with self._bell:
            self._sources, self.outcome.used = {}, dict(self._sources)
            held, self._held = self._held, []
        for source in held:
            self._fetches.release(source)

    def group(self, chunk: int, index: int) -> KVChunk | CodedKV:
        """Return a layer group of a chunk once it is there; raises LoadFailed when the controller gives up the step."""
        source = self._sources.get(chunk)
        if source is None:
            raise LoadFailed(f"segment {chunk} was given up")
        self._await(source, index + 1)
        return source.group(index)

    def _run(self, prefill: Prefill) -> Generation:
        """Do step after step until the last one is done."""
        self._tell(Tick(time.perf_counter()))
        while True:
            step = self._take()
            try:
                if isinstance(step, Finish):
                    return self._finish(step, prefill)
                self._compute(step, prefill)
            except LoadFailed:
                if not self._is_abandoned:
                    raise
                self._stopped()

    def _take(self) -> Compute | Finish:
        """Wait until there is a step to do, and return it."""
        with self._timing.measure("prefill"), self._pausing():
            while not isinstance(step := self._next, Compute | Finish):
                self._tick_s = step.until_s if step else math.inf
                self._pause()
            self._next = None
            self._tick_s = step.until_s if isinstance(step, Finish) else time.perf_counter() + _TICK_S
            return step

    def _compute(self, step: Compute, prefill: Prefill) -> None:
        """Run one step that may be abandoned; what lies before it without a source is computed with it."""
        own = [row for span in self._spans[step.first : step.stop] for row in range(span.start, span.stop)]
        before = (row for row in unsourced(prefill.segments) if row < own[0])
        rows = sorted({*before, *own}.difference(prefill.computed))
        n_layers_done = 0

        def stop() -> bool:
            nonlocal n_layers_done
            n_layers_done += 1
            return self._is_to_stop(n_layers_done)

        with self._engine():
            waited_s, started = self._timing.wait_s, time.perf_counter()
            is_done = not self._is_abandoned and (not rows or prefill.compute(rows, stop))
            seconds = time.perf_counter() - started - (self._timing.wait_s - waited_s)
        if not is_done:
            self._stopped()
            return
        self.outcome.n_steps += 1
        if rows:
            self.outcome.samples.append(PrefillSample(len(rows), sum(rows) / len(rows) + 1, max(seconds, 1e-9)))
        with self._bell:
            for chunk in range(step.first, step.stop):
                self._drop(chunk)
            self._tell(StepDone(time.perf_counter()))

    def _is_to_stop(self, n_layers_done: int) -> bool:
        """Tell the controller how far a step is, and whether the step is to stop."""
        self._tell(BetweenLayers(time.perf_counter(), n_layers_done / self._n_layers))
        return self._is_abandoned

    def _finish(self, step: Finish, prefill: Prefill) -> Generation:
        """Run the last step; the engine is not taken before the first layer group of everything is there, or all where all are needed."""
        n_groups = 1 if self._job.is_pipelined else len(self._job.layout.groups)
        with self._timing.measure("prefill"):
            for chunk in reversed(step.pending):  # a batch brings the last chunk last, so that one wait does for all
                if (source := self._sources.get(chunk)) is not None:
                    self._await(source, n_groups)
        before = set(prefill.computed)
        with self._engine():
            waited_s, started = self._timing.wait_s, time.perf_counter()
            generation = self._job.end(prefill)
            seconds = time.perf_counter() - started - (self._timing.wait_s - waited_s)
        rows = [row for row in generation.work.rows if row not in before]
        if rows and generation.work.layer_rows == len(generation.work.rows) * self._n_layers:  # every row once through every layer
            self.outcome.last_step = PrefillSample(len(rows), sum(rows) / len(rows) + 1, max(seconds, 1e-9))
        self._tell(StepDone(time.perf_counter()))
        return generation

    def _stopped(self) -> None:
        """Note that a step was abandoned."""
        self.outcome.n_abandoned += 1
        self._tell(StepStopped(time.perf_counter()))

    def _await(self, source: DeviceSource | StoredSource, n_groups: int) -> None:
        """Wait for the first layer groups of a chunk; raises LoadFailed when the step is given up."""
        if isinstance(source, DeviceSource) or source.n_arrived >= n_groups:
            return
        with self._pausing():
            self._awaited = source, n_groups
            while source.n_arrived < n_groups:
                if self._is_abandoned:
                    raise LoadFailed(f"chunk {source.key} is not waited for any more")
                self._pause()

    @contextmanager
    def _engine(self) -> Iterator[None]:
        """Use the engine."""
        with self._timing.queue(self._engine_lock), self._timing.measure("prefill"):
            yield

    @contextmanager
    def _pausing(self) -> Iterator[None]:
        """Be somebody who waits for news, and count the time."""
        started = time.perf_counter()
        try:
            with self._bell:
                yield
        finally:
            self._awaited = None
            self._timing.wait_s += time.perf_counter() - started

    def _pause(self) -> None:
        """Sleep until there is news; tell the controller when its own time has come. Call it with the bell held."""
        now_s = time.perf_counter()
        if now_s < self._tick_s:
            self._bell.wait(min(self._tick_s - now_s, _LONGEST_S))
            return
        self._tick_s = now_s + _TICK_S
        self._tell(Tick(now_s))

    def _tell(self, event: Event) -> None:
        """Hand an event to the controller and do what it answers; what happens meanwhile is handed over behind it."""
        with self._bell:
            self._news.append(event)
            if self._is_handling:
                return
            self._is_handling = True
            try:
                while self._news:
                    self._do(self._job.controller.handle(self._news.popleft()))
            finally:
                self._is_handling = False
            if self._next is not None or self._is_abandoned or self._has_come():
                self._bell.notify_all()

    def _has_come(self) -> bool:
        """Tell whether what the engine waits for is there; waking it earlier would take the interpreter from who fetches."""
        awaited = self._awaited
        return awaited is not None and awaited[0].n_arrived >= awaited[1]

    def _do(self, actions: Sequence[Action]) -> None:
        """Carry out what the controller answered; fetches over one lane are one batch."""
        batches: dict[int, list[StoredSource]] = {}
        for action in actions:
            match action:
                case Fetch(chunk, lane):
                    self._open(chunk, lane, batches)
                case Cancel(chunk):
                    self._drop(chunk)
                case Abandon():
                    self._is_abandoned = True
                case Compute() | Finish() | Wait():
                    self._next, self._is_abandoned = action, False
        for lane, sources in batches.items():
            for batch in [[source] for source in sources] if self._job.is_raced else [sources]:
                self._fetches.start(lane, batch)

    def _open(self, chunk: int, lane: int, batches: dict[int, list[StoredSource]]) -> None:
        """Open the source of a chunk; one on the device is there at once."""
        source = self._sources[chunk] = self._fetches.open(chunk, self._job.offers[chunk][lane])
        if isinstance(source, DeviceSource):
            self._news.append(Arrived(time.perf_counter(), chunk))
            return
        self._held.append(source)
        batches.setdefault(lane, []).append(source)
        source.listen(partial(self._ring, chunk))

    def _drop(self, chunk: int) -> None:
        """Forget the source of a chunk that was computed."""
        source = self._sources.pop(chunk, None)
        if isinstance(source, StoredSource):
            self.outcome.failures[chunk] = source.failure or (SOONER if self._job.is_raced else LATE)
            self._held.remove(source)
            self._fetches.release(source)

    def _ring(self, chunk: int, source: StoredSource) -> None:
        """Take news of a chunk from the thread that fetches it."""
        if not (source.failure or source.has_arrived or self._has_come()):
            return
        with self._bell:
            if self._sources.get(chunk) is not source:
                return
            now_s = time.perf_counter()
            if source.failure:
                self._tell(Failed(now_s, chunk))
            elif source.has_arrived:
                self._tell(Arrived(now_s, chunk))
            else:
                self._bell.notify_all()
