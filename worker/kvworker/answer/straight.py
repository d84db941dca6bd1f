"""Load what a plan loads, all at once, and finish; compute what fails or is late. Pure: events in, actions out, no clock.

The controller of requests that a race can't speed up: everything is on its way before a step could end, or the planner asked for exactly
this. It speaks the race's language (`kvstore.planners.race_events`), so that one executor drives both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from kvstore.planners.race_events import (
    Abandon,
    Action,
    Arrived,
    Cancel,
    Compute,
    Event,
    Failed,
    Fetch,
    Finish,
    StepDone,
    StepStopped,
)


class Controller(Protocol):
    """Decides what a request does next; see `kvstore.planners.race.Race`."""

    def handle(self, event: Event) -> tuple[Action, ...]:
        """Take in what happened, and return what to do about it, in this order."""


class Straight:
    """One wait for all loads, then computing.

    Parameters
    ----------
    lanes : mapping of chunk to lane
        What is loaded.
    rest : sequence of int
        Chunks that nothing is loaded of: the last step computes them, or a step before it that computes their neighbours.
    patience_s : float
        How long loads are waited for from the first event on. What has not arrived by then is computed, unless it arrives meanwhile.
    """

    def __init__(self, lanes: Mapping[int, int], rest: Sequence[int], patience_s: float) -> None:
        self._lanes, self._rest, self._patience_s = lanes, frozenset(rest), patience_s
        self._missing, self._failed = set(lanes), set[int]()
        self._late_s, self._is_late = math.inf, False
        self._step: Compute | Finish | None = None
        self._is_stopping = False

    def handle(self, event: Event) -> tuple[Action, ...]:
        """Take in what happened, and return what to do about it, in this order."""
        if self._late_s == math.inf:
            self._late_s = event.now_s + self._patience_s
            return (*(Fetch(chunk, lane) for chunk, lane in self._lanes.items()), self._next())
        useless = self._take_in(event)
        if self._step is None:
            return (*useless, self._next())
        if self._is_stopping or not self._is_pointless(self._step):
            return useless
        self._is_stopping = True
        return (*useless, Abandon())

    def _take_in(self, event: Event) -> tuple[Action, ...]:
        """Bring the state up to date; return the fetches that have become useless."""
        self._is_late |= event.now_s >= self._late_s
        match event:
            case Arrived(_, chunk):
                self._missing.discard(chunk)
            case Failed(_, chunk) if chunk in self._missing:
                self._failed.add(chunk)
            case StepDone() if isinstance(self._step, Compute):
                done = self._missing.intersection(range(*self._step))
                self._missing -= done
                self._step, self._is_stopping = None, False
                return tuple(Cancel(chunk) for chunk in sorted(done - self._failed))
            case StepStopped():
                self._step, self._is_stopping = None, False
        return ()

    def _to_compute(self) -> set[int]:
        """Return the chunks that are not waited for."""
        return self._missing if self._is_late else self._missing & self._failed

    def _is_pointless(self, step: Compute | Finish) -> bool:
        """Tell whether a step waits for what will not come, or computes only what has."""
        if isinstance(step, Finish):
            return bool(self._to_compute())
        return not self._missing.intersection(range(*step)) or any(chunk < step.first for chunk in self._to_compute())

    def _next(self) -> Action:
        """Compute what is not waited for, neighbours in one step; else finish."""
        wanted = self._to_compute()
        if not wanted:
            self._step = Finish(tuple(sorted(self._missing)), self._late_s)
            return self._step
        first = min(wanted)
        stop = first + 1
        while stop in wanted or stop in self._rest:
            stop += 1
        self._step = Compute(first, stop)
        return self._step
