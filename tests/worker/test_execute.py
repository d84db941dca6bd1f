"""Carrying out a controller's decisions: with a scripted controller, fetches that the test lands, and a prompt that notes what is run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import pytest

from kvstore.core.errors import TierUnavailableError
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
from kvworker.answer.course import Timing
from kvworker.answer.execute import Execution, Job
from kvworker.answer.load import DeviceSource, StoredSource
from kvworker.chunk import KVChunk
from kvworker.engine.engine import Generation, LoadFailed, Prefill, Segment, Work, never
from tests.engine.prompts import Tiny
from tests.worker.waiting import until

FAR_S = 1e9


class Script:
    """A controller that answers each kind of event by what the test wrote down for it, in turn, and notes all events."""

    def __init__(self, **answers: list[tuple[Action, ...]]) -> None:
        self.answers = answers
        self.seen: list[Event] = []

    def handle(self, event: Event) -> tuple[Action, ...]:
        """Answer."""
        self.seen.append(event)
        found = self.answers.get(type(event).__name__)
        return found.pop(0) if found else ()

    def kinds(self) -> list[type[Event]]:
        """Return what kinds of events came, ticks left out."""
        return [type(event) for event in self.seen if not isinstance(event, Tick)]


@dataclass
class Hangar:
    """Fetches that land when the test says so; implements `Fetches`."""

    tiny: Tiny
    on_device: set[int] = field(default_factory=set)
    opened: dict[int, StoredSource] = field(default_factory=dict)
    started: list[tuple[int, int]] = field(default_factory=list)
    released: list[StoredSource] = field(default_factory=list)

    def open(self, chunk: int, offer: Offer) -> DeviceSource | StoredSource:
        """Open a source."""
        if chunk in self.on_device:
            return DeviceSource(())
        self.opened[chunk] = StoredSource(None, self.tiny.engine.identity, 2, "cpu")  # type: ignore[arg-type]
        return self.opened[chunk]

    def start(self, lane: int, sources: Sequence[StoredSource]) -> None:
        """Note."""
        self.started.append((lane, len(sources)))

    def release(self, source: StoredSource) -> None:
        """Note."""
        self.released.append(source)

    def land(self, chunk: int, n_groups: int = 2) -> None:
        """Have layer groups of a chunk arrive."""
        source = self.opened[chunk]
        for _ in range(n_groups):
            source._chunks.append(cast("KVChunk", f"kv {chunk}"))
            source._tell()


@dataclass
class NotedPrefill:
    """A prompt of three stored segments of 2 rows and a question of 1, that notes its steps and runs 2 layers in each."""

    segments: tuple[Segment, ...]
    computed: list[int] = field(default_factory=list)
    steps: list[list[int]] = field(default_factory=list)
    between: Callable[[], None] = lambda: None

    def compute(self, rows: Sequence[int], stop: Callable[[], bool] = never) -> bool:
        """Note a step that counts."""
        self.between()
        if stop():
            return False
        self.steps.append(list(rows))
        self.computed += rows
        return True


@dataclass
class Stage:
    """A prompt under way on a thread of its own."""

    script: Script
    hangar: Hangar
    lock: threading.Lock
    execution: Execution
    prefill: NotedPrefill
    ended: list[list[int]]

    def run(self) -> None:
        """Run to the end."""
        try:
            self.execution.run()
        finally:
            self.execution.close()


MakeStage = Callable[..., Stage]


@pytest.fixture
def stage(tiny: Tiny) -> MakeStage:
    """Return a function that sets a stage: the script, what the last step asks of which segments, and what is stored."""

    def make(
        script: Script, asks: Sequence[tuple[int, int]] = (), sourced: Sequence[int] = (0, 1, 2), on_device: Sequence[int] = ()
    ) -> Stage:
        segments = [Segment((1, 2))] * 3 + [Segment((3,))]
        offers = [dict.fromkeys(range(2), Offer("memory", 1, b"", "raw")) if i in sourced else {} for i in range(4)]
        ended: list[list[int]] = []
        prefill = NotedPrefill(())

        def begin(given: Sequence[Segment]) -> Prefill:
            prefill.segments = tuple(given)
            return cast("Prefill", prefill)

        def end(prefill: Prefill) -> Generation:
            for chunk, group in asks:
                source = prefill.segments[chunk].source
                if source is not None:
                    source.group(group)
            ended.append(list(prefill.computed))
            return cast("Generation", SimpleNamespace(work=Work((), 0)))

        job = Job(script, segments, offers, begin, end, tiny.engine.identity.layout)
        hangar, lock = Hangar(tiny, set(on_device)), threading.Lock()
        return Stage(script, hangar, lock, Execution(job, hangar, lock, Timing()), prefill, ended)

    return make


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Yield threads that end with the test."""
    with ThreadPoolExecutor(2) as pool:
        yield pool


ALL = (Fetch(0, 0), Fetch(1, 0), Fetch(2, 1))


def test_the_last_step_waits_for_each_layer_group_it_asks_for(stage: MakeStage, threads: ThreadPoolExecutor) -> None:
    """And is told to the controller when it is done."""
    scene = stage(Script(Tick=[(*ALL, Finish((0, 1, 2), FAR_S))]), asks=[(0, 0), (0, 1)])
    running = threads.submit(scene.run)
    until(lambda: len(scene.hangar.opened) == 3)
    for chunk in range(3):
        scene.hangar.land(chunk)
    running.result(10)
    assert scene.hangar.started == [(0, 2), (1, 1)]
    assert scene.script.kinds() == [Arrived] * 3 + [StepDone]


def test_waiting_for_the_first_layer_group_leaves_the_model_to_others(stage: MakeStage, threads: ThreadPoolExecutor) -> None:
    """Other requests go on decoding."""
    scene = stage(Script(Tick=[(*ALL, Finish((0, 1, 2), FAR_S))]), asks=[(0, 0)])
    running = threads.submit(scene.run)
    until(lambda: scene.execution._awaited is not None)
    assert scene.lock.acquire(timeout=5)
    scene.lock.release()
    for chunk in range(3):
        scene.hangar.land(chunk, 1)
    running.result(10)


def test_waiting_between_steps_leaves_the_model_to_others_and_ends_with_a_tick(stage: MakeStage) -> None:
    """The controller's time has come, though nothing happened."""
    script = Script(Tick=[(Wait(0.0),), (Finish((), FAR_S),)])
    scene = stage(script)
    scene.run()
    assert [type(event) for event in script.seen] == [Tick, Tick, StepDone]


def test_a_step_that_waits_for_a_lost_chunk_is_given_up_and_the_chunk_computed(stage: MakeStage, threads: ThreadPoolExecutor) -> None:
    """Its rows are not asked for any more."""
    script = Script(
        Tick=[(*ALL, Finish((0, 1, 2), FAR_S))],
        Failed=[(Abandon(),)],
        StepStopped=[(Compute(1, 2),)],
        StepDone=[(Finish((0, 2), FAR_S),)],
    )
    scene = stage(script, asks=[(0, 0), (2, 0)])
    running = threads.submit(scene.run)
    until(lambda: len(scene.hangar.opened) == 3)
    scene.hangar.opened[1].fail(TierUnavailableError("gone"))
    until(lambda: bool(scene.prefill.steps))
    scene.hangar.land(0)
    scene.hangar.land(2)
    running.result(10)
    assert scene.prefill.steps == [[2, 3]]
    assert scene.execution.outcome.failures == {1: "gone"}
    assert sorted(scene.execution.outcome.used) == [0, 2]
    assert [kind for kind in script.kinds() if kind is not Arrived] == [Failed, StepStopped, BetweenLayers, StepDone, StepDone]


def test_a_step_ends_between_layers_when_its_chunk_arrives(stage: MakeStage) -> None:
    """Nothing of it counts."""
    script = Script(Tick=[(*ALL, Compute(0, 1))], Arrived=[(Abandon(),)], StepStopped=[(Finish((), FAR_S),)])
    scene = stage(script)
    scene.prefill.between = lambda: scene.hangar.land(0)
    scene.run()
    assert scene.prefill.steps == []
    assert scene.execution.outcome.n_abandoned == 1
    assert scene.execution.outcome.samples == []


def test_a_computed_step_tells_what_it_took_and_drops_what_was_on_its_way(stage: MakeStage) -> None:
    """The cost model learns from it; the link is free for the others."""
    script = Script(Tick=[(*ALL, Compute(0, 2))], StepDone=[(Cancel(0), Cancel(1), Finish((), FAR_S))])
    scene = stage(script)
    scene.run()
    (sample,) = scene.execution.outcome.samples
    assert (sample.rows, sample.context) == (4, 2.5)
    assert scene.hangar.released[:2] == [scene.hangar.opened[0], scene.hangar.opened[1]]


def test_what_has_no_source_is_computed_with_the_step_behind_it(stage: MakeStage) -> None:
    """A row needs all rows before it in the cache."""
    script = Script(Tick=[(Fetch(1, 0), Compute(1, 2))], StepDone=[(Finish((), FAR_S),)])
    scene = stage(script, sourced=(1, 2))
    scene.run()
    assert scene.prefill.steps == [[0, 1, 2, 3]]


def test_what_the_device_holds_has_arrived_at_once(stage: MakeStage) -> None:
    """The controller hears of it behind the answer that asked for it."""
    script = Script(Tick=[(Fetch(0, 0), Finish((0,), FAR_S))])
    stage(script, on_device=[0]).run()
    assert script.kinds() == [Arrived, StepDone]


def test_everything_is_let_go_of_at_the_end(stage: MakeStage) -> None:
    """Also what never came."""
    scene = stage(Script(Tick=[(*ALL, Finish((), FAR_S))]))
    scene.run()
    assert scene.hangar.released == [scene.hangar.opened[chunk] for chunk in range(3)]


def test_a_source_that_fails_though_it_had_arrived_ends_as_computing_everything(stage: MakeStage) -> None:
    """No exception of a store's crosses into an answer."""
    scene = stage(Script(Tick=[(Fetch(0, 0), Finish((), FAR_S))]), asks=[(1, 0)])
    scene.run()
    assert [segment.source for segment in scene.prefill.segments] == [None] * 4
    assert scene.ended == [[]]


def test_news_that_comes_behind_the_end_changes_nothing(stage: MakeStage) -> None:
    """A loader may be late."""
    scene = stage(Script(Tick=[(*ALL, Finish((), FAR_S))]))
    scene.run()
    n_seen = len(scene.script.seen)
    scene.hangar.land(0)
    assert len(scene.script.seen) == n_seen


def test_a_source_that_was_given_up_is_not_waited_for(stage: MakeStage) -> None:
    """The engine may still ask for it in the step that is being given up."""
    scene = stage(Script(Tick=[(Finish((), FAR_S),)]))
    with pytest.raises(LoadFailed):
        scene.execution.group(0, 0)
