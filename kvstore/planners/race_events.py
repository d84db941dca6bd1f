"""What the race is told, and what it answers. Every `now_s` is a reading of one clock that never goes back."""

from __future__ import annotations

from typing import NamedTuple


class Tick(NamedTuple):
    """The race begins, or the time that a `Wait`, `Finish` or `Remind` named has come."""

    now_s: float


class Arrived(NamedTuple):
    """A chunk that was fetched is complete in host memory."""

    now_s: float
    chunk: int


class Failed(NamedTuple):
    """A chunk that was fetched can't be had from its lane."""

    now_s: float
    chunk: int


class BetweenLayers(NamedTuple):
    """The step under way has run the share `done` of its layers and could stop here."""

    now_s: float
    done: float


class StepDone(NamedTuple):
    """The step under way has finished, and counts."""

    now_s: float


class StepStopped(NamedTuple):
    """The step under way was abandoned between layers, and nothing of it counts."""

    now_s: float


Event = Tick | Arrived | Failed | BetweenLayers | StepDone | StepStopped


class Fetch(NamedTuple):
    """Start to fetch a chunk over a lane."""

    chunk: int
    lane: int


class Cancel(NamedTuple):
    """A fetch that was started is of no use any more; if it arrives nevertheless, keep it to yourself."""

    chunk: int


class Compute(NamedTuple):
    """Compute chunks `first` to `stop - 1` in one step that may be abandoned between layers; every chunk before them is there."""

    first: int
    stop: int


class Wait(NamedTuple):
    """Let the device rest until something happens, and send a Tick at `until_s` if nothing did."""

    until_s: float


class Remind(NamedTuple):
    """Send a Tick at `until_s` too, if the Finish under way still misses chunks: others of them are due then."""

    until_s: float


class Abandon(NamedTuple):
    """Stop the step under way at the next border between layers, then send StepStopped, or StepDone if it was too late."""


class Finish(NamedTuple):
    """Run the last step: land and repair what was loaded, and compute the question.

    Chunks in `pending` are still on their way; their layer groups are waited for inside the step. Send a Tick at `until_s` while some of
    them are missing: the answer may be Abandon.
    """

    pending: tuple[int, ...]
    until_s: float


Action = Fetch | Cancel | Compute | Wait | Remind | Abandon | Finish
