"""Race computing against loading: the controller of one request under way, without a clock and without I/O.

Cake (2410.03065) computes a prompt from its front while a loader brings it from its back, and the meeting point is found, not predicted.
Its published form waits for a step whose result has been loaded meanwhile; this one abandons such a step, and does not begin one that is
predicted to end after the loader's arrival. So the time is that of the best split, and never above computing all or loading all by more
than what can't be stopped: a layer.

How to drive it. Create a Race from the plan's work, then tell it what happens, one event at a time and in order of time, and do what each
answer says, in the order given:

    actions = race.handle(Tick(now))             # begin
    ...
    actions = race.handle(Arrived(now, chunk))   # from a loader's thread: hold a lock around handle()

At most one step (Compute or Finish) is under way; a new one is answered only when the last has ended by StepDone or StepStopped. At most
`window` chunks per lane are on their way. The race is over with StepDone of Finish. After every event the rest of the work is planned
again (`share_out.py`) by the paces seen so far. Nothing is waited for that is late: a lane that keeps a chunk for longer than planned, by
more than its error, counts as dead until it delivers, and computing goes on beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum

from kvstore.core.errors import InvalidInputError
from kvstore.planners.makespan import Option
from kvstore.planners.pace import Pace
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
    Wait,
)
from kvstore.planners.share_out import NOWHERE, Work, order_of_loads, share_out

_LEAST_ERROR = 0.1  # what is less late than this is not late
_LEAST_HIDDEN = 0.05  # of a wait: lanes break down less often than once in twenty
_MOST_VISITED = 300  # per event; the first plan has looked at more
_CAUTION = 100.0  # a wait spares a step if it is shorter by 1 + this times the error of its lane; 0 would spare the device for others
_WORTH_A_CHANGE = 0.9  # a chunk changes its lane only to be done in less than this share of the time


class ChunkState(IntEnum):
    """Where a chunk is; the last two are there to stay."""

    WAITING = 0
    FLYING = 1
    LOADED = 2
    COMPUTED = 3


class Race:
    """The state of one race. Not thread-safe.

    Parameters
    ----------
    work : Work
        The chunks with the lanes that the plan chose for them.
    options : sequence of sequences of Option
        Every lane that each chunk could come over, for when the chosen one fails or falls behind.
    rows : sequence of int
        Tokens of each chunk.
    lane_errors : sequence of float
        By how much loads of each lane may take longer than planned, as a share.
    ready_s : sequence of float
        Seconds until each lane serves this request's first fetch; empty where all serve it at once.
    step_rows : int
        Tokens that one step computes at most, unless a single chunk has more.
    window : int
        Fetches under way per lane: 2 hide the latency of a request behind the one before it.
    """

    def __init__(
        self,
        work: Work,
        options: Sequence[Sequence[Option]],
        rows: Sequence[int],
        lane_errors: Sequence[float],
        ready_s: Sequence[float] = (),
        step_rows: int = 512,
        window: int = 2,
    ) -> None:
        if window < 1 or step_rows < 1:
            raise InvalidInputError(f"a race needs a window and steps of at least 1, got {window} fetches and {step_rows} rows")
        self._work, self._rows, self._step_rows, self._window = work, rows, step_rows, window
        self._errors = list(lane_errors)
        self._options = [{o.lane: o.seconds for o in found} for found in options]
        self._lanes = list(work.lanes)
        self.state = [ChunkState.WAITING] * len(rows)
        self._flying: list[list[int]] = [[] for _ in lane_errors]
        self._free_at = list(ready_s) or [0.0] * len(lane_errors)  # counted from the first event until that has come
        self._busy_since = [0.0] * len(lane_errors)
        self._has_begun = False
        self.lane_pace = [Pace() for _ in lane_errors]
        self.compute_pace = Pace()
        self._step: Compute | Finish | None = None
        self._step_began_s = self._step_planned_s = 0.0
        self._is_stopping = False
        self.is_over = False

    def handle(self, event: Event) -> tuple[Action, ...]:
        """Take in what happened, and return what to do about it, in this order."""
        now_s = event.now_s
        if not self._has_begun:
            self._free_at, self._has_begun = [now_s + wait_s for wait_s in self._free_at], True
        cancelled = self._take_in(event)
        if self.is_over:
            return cancelled
        if self._step is not None:
            if isinstance(event, BetweenLayers) and not self._is_behind(event):
                return cancelled
            stop = (Abandon(),) if not self._is_stopping and self._is_useless(now_s) else ()
            self._is_stopping |= bool(stop)
            return (*cancelled, *(() if self._is_stopping else self._reminders()), *stop, *self._fetches(self._plan(now_s), now_s))
        plan = self._plan(now_s)
        fetches = self._fetches(plan, now_s)
        return (*cancelled, *fetches, self._next(plan, now_s))

    def _take_in(self, event: Event) -> tuple[Action, ...]:
        """Bring the state up to date; return the fetches that have become useless."""
        match event:
            case Arrived(now_s, chunk):
                self._land(now_s, chunk)
            case Failed(now_s, chunk):
                self._lose(now_s, chunk)
            case StepDone(now_s):
                return self._complete(now_s)
            case StepStopped():
                self._step, self._is_stopping = None, False
        return ()

    def _land(self, now_s: float, chunk: int) -> None:
        """Note that a chunk is here, and how long its lane took for it."""
        if self.state[chunk] is not ChunkState.FLYING:
            return  # it was cancelled
        lane = self._lanes[chunk]
        planned_s = self._options[chunk][lane]
        self.lane_pace[lane] = self.lane_pace[lane].observe(planned_s, max(now_s - self._busy_since[lane], 0.0))
        self.state[chunk] = ChunkState.LOADED
        self._leave(now_s, chunk)

    def _lose(self, now_s: float, chunk: int) -> None:
        """Note that a chunk can't be had from its lane: another may have it, else it is computed."""
        if self.state[chunk] is not ChunkState.FLYING:
            return
        self._leave(now_s, chunk)
        del self._options[chunk][self._lanes[chunk]]
        others = self._options[chunk]
        self._lanes[chunk] = min(others, key=lambda lane: others[lane] * self.lane_pace[lane].used, default=NOWHERE)
        self.state[chunk] = ChunkState.WAITING

    def _leave(self, now_s: float, chunk: int) -> None:
        """Take a chunk off its lane, which has served the next one since now if this was the first, or if it has just arrived."""
        flying = self._flying[self._lanes[chunk]]
        if flying[0] == chunk or self.state[chunk] is ChunkState.LOADED:
            self._busy_since[self._lanes[chunk]] = now_s
        flying.remove(chunk)

    def _complete(self, now_s: float) -> tuple[Action, ...]:
        """Note that the step under way is done; return its chunks that need not arrive any more."""
        step, self._step, self._is_stopping = self._step, None, False
        if not isinstance(step, Compute):
            self.is_over = True
            return ()
        planned_s = sum(self._work.compute_s[i] for i in range(step.first, step.stop))
        self.compute_pace = self.compute_pace.observe(planned_s, now_s - self._step_began_s)
        useless = [i for i in range(step.first, step.stop) if self.state[i] is ChunkState.FLYING]
        for chunk in useless:
            self._leave(now_s, chunk)
        self.state[step.first : step.stop] = [ChunkState.COMPUTED] * (step.stop - step.first)
        return tuple(map(Cancel, useless))

    def _is_useless(self, now_s: float) -> bool:
        """Tell whether the step under way is worth nothing: it was or will be overtaken by loads, or what it waits for is late or lost."""
        if isinstance(self._step, Compute):
            is_loaded = all(self.state[i] is ChunkState.LOADED for i in range(self._step.first, self._step.stop))
            return is_loaded or self._should_finish(now_s, self._step_began_s + self._step_planned_s)
        assert self._step is not None
        missing = [i for i in self._step.pending if self.state[i] is not ChunkState.LOADED]
        return any(self.state[i] is ChunkState.WAITING or self._late_at(self._lanes[i]) <= now_s for i in missing)

    def _reminders(self) -> tuple[Action, ...]:
        """Return when the last step has waited long enough for the chunk that is due next."""
        missing = [i for i in self._step.pending if self.state[i] is ChunkState.FLYING] if isinstance(self._step, Finish) else []
        return (Remind(min(self._late_at(self._lanes[i]) for i in missing)),) if missing else ()

    def _late_at(self, lane: int) -> float:
        """Return when a lane counts as late, infinite while nothing is on its way there."""
        if not self._flying[lane]:
            return math.inf
        chunk = self._flying[lane][0]
        return self._busy_since[lane] + self._seconds(chunk, lane) * (1 + max(self._errors[lane], _LEAST_ERROR))

    def _seconds(self, chunk: int, lane: int) -> float:
        """Return the predicted seconds of loading a chunk over a lane."""
        return self._options[chunk][lane] * self.lane_pace[lane].used

    def _ready_s(self, now_s: float, engine_s: float) -> list[float]:
        """Return when each lane has brought what is on its way, counted from when the device is free; infinite for lanes that are late."""
        ready = []
        for lane, flying in enumerate(self._flying):
            if self._late_at(lane) <= now_s:
                ready.append(math.inf)
                continue
            begins_s = self._busy_since[lane] if flying else max(now_s, self._free_at[lane])
            ready.append(max(begins_s + sum(self._seconds(i, lane) for i in flying), now_s) - engine_s)
        return ready

    def _is_behind(self, event: BetweenLayers) -> bool:
        """Tell whether the step under way takes longer than planned, and count with that from now on."""
        taken_s = (event.now_s - self._step_began_s) / max(event.done, 1e-9)
        is_behind = taken_s > self._step_planned_s * (1 + _LEAST_ERROR)
        if is_behind:
            self._step_planned_s = taken_s
        return is_behind

    def _plan(self, now_s: float) -> dict[int, bool]:
        """Return for every chunk that is neither there nor in the step under way whether to load it, in the order of the prompt."""
        under_way = range(self._step.first, self._step.stop) if isinstance(self._step, Compute) else range(0)
        rest = [i for i, state in enumerate(self.state) if state < ChunkState.LOADED and i not in under_way]
        if isinstance(self._step, Finish) or not rest:
            return {}
        engine_s = max(now_s, self._step_began_s + self._step_planned_s) if self._step else now_s
        ready_s = self._ready_s(now_s, engine_s)
        self._change_lanes(rest, [s + engine_s - now_s for s in ready_s])
        pace, lanes = self.compute_pace.used, [self._lanes[i] for i in rest]
        is_asked = [lane == NOWHERE or self.state[i] is ChunkState.FLYING for i, lane in zip(rest, lanes, strict=True)]
        loads_s = [0.0 if asked else self._seconds(i, lane) for i, lane, asked in zip(rest, lanes, is_asked, strict=True)]
        computes_s, last_s = [self._work.compute_s[i] * pace for i in rest], [self._work.last_s[i] * pace for i in rest]
        work = Work(computes_s, lanes, loads_s, last_s, self._work.question_s * pace, self._work.overlap)
        return dict(zip(rest, share_out(work, ready_s, _MOST_VISITED).is_loaded, strict=True))

    def _change_lanes(self, rest: Sequence[int], busy_s: list[float]) -> None:
        """Move chunks that nobody has asked for yet to lanes where they are done much sooner; `busy_s` is until when each lane is busy.

        As long as everything goes as planned, the plan's lanes are better than what is found here, chunk by chunk.
        """
        if all(pace.used == 1 for pace in (*self.lane_pace, self.compute_pace)) and max(busy_s, default=0.0) < math.inf:
            return
        for i in reversed(rest):
            if self.state[i] is ChunkState.WAITING and self._options[i]:
                done_s = {lane: busy_s[lane] + self._seconds(i, lane) for lane in self._options[i]}
                own, best = self._lanes[i], min(done_s, key=done_s.__getitem__)
                if done_s[best] < done_s[own] * _WORTH_A_CHANGE:
                    self._lanes[i] = own = best
                busy_s[own] = done_s[own]

    def _fetches(self, plan: dict[int, bool], now_s: float) -> tuple[Action, ...]:
        """Ask for chunks that the plan loads, then for those of the step under way if it can be beaten, as many as the windows take."""
        rest = list(plan)
        wanted = [rest[place] for place in order_of_loads(list(plan.values()))]
        found = []
        for chunk in (*wanted, *self._rivals(wanted, now_s)):
            lane = self._lanes[chunk]
            if self.state[chunk] is ChunkState.WAITING and len(self._flying[lane]) < self._window:
                if not self._flying[lane]:
                    self._busy_since[lane] = max(now_s, self._free_at[lane])
                self._flying[lane].append(chunk)
                self.state[chunk] = ChunkState.FLYING
                found.append(Fetch(chunk, lane))
        return tuple(found)

    def _rivals(self, wanted: Sequence[int], now_s: float) -> list[int]:
        """Return the chunks of the step under way, from its end, if all of them would arrive before it ends, behind what is wanted."""
        if not isinstance(self._step, Compute):
            return []
        arrive_s = self._ready_s(now_s, self._step_began_s + self._step_planned_s)
        for chunk in wanted:
            if self.state[chunk] is ChunkState.WAITING:
                arrive_s[self._lanes[chunk]] += self._seconds(chunk, self._lanes[chunk])
        rivals = [i for i in range(self._step.stop - 1, self._step.first - 1, -1) if self.state[i] is ChunkState.WAITING]
        for chunk in rivals:
            done_s = {lane: arrive_s[lane] + self._seconds(chunk, lane) for lane in self._options[chunk]}
            lane = min(done_s, key=done_s.__getitem__, default=NOWHERE)
            if lane == NOWHERE or done_s[lane] >= 0:
                return []
            self._lanes[chunk], arrive_s[lane] = lane, done_s[lane]
        on_their_way = (i for i in range(self._step.first, self._step.stop) if self.state[i] is ChunkState.FLYING)
        return rivals if all(arrive_s[self._lanes[i]] < 0 for i in on_their_way) else []

    def _next(self, plan: dict[int, bool], now_s: float) -> Action:
        """Say what the device does now: compute, wait for a loader, or finish."""
        rest = list(plan)
        until_s = min((late_s for late_s in map(self._late_at, range(len(self._flying))) if late_s > now_s), default=math.inf)
        if not rest:
            self._step = Finish((), math.inf)
        elif all(plan.values()) and self._should_finish(now_s, math.inf):
            self._step = Finish(tuple(rest), until_s)
        elif plan[rest[0]] and self._is_worth_waiting(plan, now_s):
            if any(self.state[i] is ChunkState.WAITING for i in rest):
                return Wait(until_s)
            self._step = Finish(tuple(rest), until_s)
        else:
            self._step = Compute(rest[0], self._stop(plan, rest))
            self._step_planned_s = self.compute_pace.used * sum(self._work.compute_s[i] for i in range(*self._step))
        self._step_began_s = now_s
        return self._step

    def _should_finish(self, now_s: float, end_s: float) -> bool:
        """Tell whether all that is missing is on its way, arrives before `end_s`, and leaves the last step enough to hide behind it.

        The last step may have to be abandoned too, if a lane breaks down; then the wait is lost. So it must save a share of that wait.
        """
        missing = [i for i, state in enumerate(self.state) if state < ChunkState.LOADED]
        if not missing or any(self.state[i] is ChunkState.WAITING for i in missing):
            return False
        wait_s, chunk = max((self._ready_s(now_s, now_s)[self._lanes[i]], i) for i in missing)
        used = (i for i, state in enumerate(self.state) if state in (ChunkState.FLYING, ChunkState.LOADED))
        last_s = (self._work.question_s + sum(self._work.last_s[i] for i in used)) * self.compute_pace.used
        hidden_s = self._work.overlap * min(self._seconds(chunk, self._lanes[chunk]), last_s)
        return now_s + wait_s < end_s and hidden_s > 0 and hidden_s >= _LEAST_HIDDEN * wait_s

    def _is_worth_waiting(self, plan: dict[int, bool], now_s: float) -> bool:
        """Tell whether to leave the device alone until what is loaded before the next computed chunk is here.

        A step that loses the race costs a layer at most, and one that is not run costs the whole wait when the lane breaks down. So the
        wait must be shorter than the step, by the more the less is known about the lane.
        """
        ready_s = self._ready_s(now_s, now_s)
        wait_s = 0.0
        for chunk, loads in plan.items():
            if not loads:
                break
            lane = self._lanes[chunk]
            if self.state[chunk] is ChunkState.WAITING:
                ready_s[lane] += self._seconds(chunk, lane)
            wait_s = max(wait_s, ready_s[lane] * (1 + _CAUTION * self._errors[lane]))
        return wait_s <= self._work.compute_s[next(iter(plan))] * self.compute_pace.used

    def _stop(self, plan: dict[int, bool], rest: Sequence[int]) -> int:
        """Return where a step from the first chunk on ends.

        It takes what the plan computes, as far as one step goes; of what the plan loads but is not sure of, a single chunk.
        """
        stop, rows = rest[0] + 1, self._rows[rest[0]]
        while not plan[rest[0]] and plan.get(stop) is False and rows + self._rows[stop] <= self._step_rows:
            rows += self._rows[stop]
            stop += 1
        return stop
