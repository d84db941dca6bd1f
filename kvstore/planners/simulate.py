"""Drive a race against lanes and a device whose speed changes over time: deterministic, event by event, no clock.

The same controller that serving drives with real time. A lane serves one fetch after the other; a step can stop between layers only.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from kvstore.core.errors import InvalidInputError
from kvstore.planners.race import Race
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
    Remind,
    StepDone,
    StepStopped,
    Tick,
    Wait,
)


@dataclass(frozen=True)
class Speed:
    """Seconds of planned work that are done per second, from each moment on.

    Parameters
    ----------
    changes : tuple of (float, float)
        (moment, speed), the first at 0, moments ascending; a speed of 0 stands still.
    """

    changes: tuple[tuple[float, float], ...] = ((0.0, 1.0),)

    def __post_init__(self) -> None:
        moments = [moment for moment, _ in self.changes]
        if not moments or moments[0] != 0 or moments != sorted(set(moments)) or any(speed < 0 for _, speed in self.changes):
            raise InvalidInputError(f"speeds start at moment 0, at ascending moments, none negative: {self.changes}")

    def end(self, start_s: float, work_s: float) -> float:
        """Return when work that was begun at `start_s` is done, infinite if never."""
        index = bisect_right(self.changes, start_s, key=lambda change: change[0]) - 1
        for place in range(index, len(self.changes)):
            speed = self.changes[place][1]
            until_s = self.changes[place + 1][0] if place + 1 < len(self.changes) else math.inf
            if speed > 0 and start_s + work_s / speed <= until_s:
                return start_s + work_s / speed
            work_s -= (until_s - start_s) * speed if speed > 0 else 0.0
            start_s = until_s
        return math.inf


@dataclass(frozen=True)
class World:
    """What really happens, as far as the race has not planned for it.

    Parameters
    ----------
    compute_s : sequence of float
        Seconds of computing each chunk at speed 1.
    load_s : sequence of mapping-like sequences
        `load_s[lane][chunk]`: seconds that the lane takes for it at speed 1, infinite for a fetch that fails at once.
    last_s : float
        The last step.
    device, lanes : Speed
        How fast they are.
    n_layers : int
        A step stops after one of so many equal parts.
    overlap : float
        Share of the newest load that the last step hides.
    """

    compute_s: Sequence[float]
    load_s: Sequence[Sequence[float]]
    lanes: Sequence[Speed]
    last_s: float = 0.0
    device: Speed = field(default_factory=Speed)
    n_layers: int = 32
    overlap: float = 0.0


class Outcome(NamedTuple):
    """When the first token came; steps that counted and that were abandoned; fetches begun and of use."""

    seconds: float
    n_steps: int
    n_abandoned: int
    n_fetched: int
    n_arrived: int


class Simulation:
    """One race in one world; `run` may be called once."""

    def __init__(self, race: Race, world: World) -> None:
        self._race, self._world = race, world
        self._events: list[tuple[float, int, Event]] = []
        self._order = count()  # events at one moment happen in the order in which they were foreseen
        self._queues: list[list[int]] = [[] for _ in world.lanes]
        self._arrivals: dict[int, Event] = {}
        self._step: Compute | Finish | None = None
        self._step_events: list[Event] = []
        self._began_s = 0.0
        self._newest: tuple[float, float] = (0.0, 0.0)  # when the newest chunk arrived, and how long it took
        self.n_steps = self.n_abandoned = self.n_fetched = self.n_arrived = 0

    def run(self) -> Outcome:
        """Return what came out. A race that stops without a first token raises InvalidInputError."""
        self._expect(Tick(0.0))
        while self._events:
            _, _, event = heapq.heappop(self._events)
            if not self._is_current(event):
                continue
            self._happen(event)
            for action in self._race.handle(event):
                self._do(event.now_s, action)
            if self._race.is_over:
                return Outcome(event.now_s, self.n_steps, self.n_abandoned, self.n_fetched, self.n_arrived)
        raise InvalidInputError("nothing more happens and there is no first token: a lane and the device stand still")

    def _expect(self, event: Event) -> Event:
        """Foresee an event."""
        if event.now_s < math.inf:
            heapq.heappush(self._events, (event.now_s, next(self._order), event))
        return event

    def _is_current(self, event: Event) -> bool:
        """Tell whether what was foreseen has not been overtaken by a cancelled fetch or an abandoned step."""
        match event:
            case Arrived(_, chunk) | Failed(_, chunk):
                return self._arrivals.get(chunk) is event
            case BetweenLayers() | StepDone() | StepStopped():
                return any(event is expected for expected in self._step_events)
        return True

    def _happen(self, event: Event) -> None:
        """Change the world by an event."""
        match event:
            case Arrived(now_s, chunk) | Failed(now_s, chunk):
                lane = self._leave(now_s, chunk)
                if isinstance(event, Arrived):
                    self.n_arrived += 1
                    self._newest = (now_s, self._world.load_s[lane][chunk])
                    self._finish_when_all_came(now_s)
            case StepDone() | StepStopped():
                self.n_abandoned += isinstance(event, StepStopped)
                self.n_steps += isinstance(event, StepDone)
                self._step, self._step_events = None, []

    def _do(self, now_s: float, action: Action) -> None:
        """Carry out what the race answered."""
        match action:
            case Fetch(chunk, lane):
                self.n_fetched += 1
                self._queues[lane].append(chunk)
                if len(self._queues[lane]) == 1:
                    self._serve(now_s, lane)
            case Cancel(chunk):
                self._leave(now_s, chunk)
            case Wait(until_s) | Remind(until_s):
                self._expect(Tick(until_s))
            case Abandon():
                self._stop(now_s)
            case Compute() | Finish():
                self._begin(now_s, action)

    def _serve(self, now_s: float, lane: int) -> None:
        """Begin to load the first chunk of a lane's queue."""
        chunk = self._queues[lane][0]
        load_s = self._world.load_s[lane][chunk]
        end_s = self._world.lanes[lane].end(now_s, load_s) if load_s < math.inf else now_s
        self._arrivals[chunk] = self._expect(Arrived(end_s, chunk) if load_s < math.inf else Failed(end_s, chunk))

    def _leave(self, now_s: float, chunk: int) -> int:
        """Take a chunk off its lane, which goes on with the next; return the lane."""
        lane = next(lane for lane, queue in enumerate(self._queues) if chunk in queue)
        was_first = self._queues[lane][0] == chunk
        self._queues[lane].remove(chunk)
        self._arrivals.pop(chunk, None)
        if was_first and self._queues[lane]:
            self._serve(now_s, lane)
        return lane

    def _begin(self, now_s: float, step: Compute | Finish) -> None:
        """Begin a step: its layers end one by one."""
        self._step, self._began_s = step, now_s
        if isinstance(step, Finish):
            self._expect(Tick(step.until_s))
            self._finish_when_all_came(now_s)
            return
        ends = list(self._layer_ends(now_s, sum(self._world.compute_s[step.first : step.stop])))
        layers: list[Event] = [BetweenLayers(end_s, (m + 1) / len(ends)) for m, end_s in enumerate(ends[:-1])]
        self._step_events = [self._expect(event) for event in [*layers, StepDone(ends[-1])]]

    def _layer_ends(self, now_s: float, work_s: float) -> Iterator[float]:
        """Yield when each layer of a step ends."""
        for _ in range(self._world.n_layers):
            now_s = self._world.device.end(now_s, work_s / self._world.n_layers)
            yield now_s

    def _finish_when_all_came(self, now_s: float) -> None:
        """Foresee the end of the last step once nothing is pending: its layers followed the newest chunk's."""
        if isinstance(self._step, Finish) and not any(chunk in queue for queue in self._queues for chunk in self._step.pending):
            arrived_s, load_s = self._newest
            hidden_s = self._world.overlap * min(load_s, self._world.last_s)
            start_s = max(self._began_s, arrived_s - hidden_s)
            self._step_events = [self._expect(StepDone(max(now_s, self._world.device.end(start_s, self._world.last_s))))]

    def _stop(self, now_s: float) -> None:
        """Stop the step under way at its next border."""
        borders = [event.now_s for event in self._step_events if isinstance(event, BetweenLayers) and event.now_s >= now_s]
        ends_s = now_s if isinstance(self._step, Finish) else min([*borders, math.inf])
        if ends_s < math.inf:  # else it is in its last layer and is done as soon as it could stop
            self._step_events = [self._expect(StepStopped(ends_s))]


def simulate(race: Race, world: World) -> Outcome:
    """Return how a race goes in a world."""
    return Simulation(race, world).run()
