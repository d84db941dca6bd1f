"""Who is there, what they are thought to hold, and what they are busy with: the state behind every choice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from kvstore.core.errors import TierUnavailableError
from kvworker.route.choose import PassageKey, WorkerState, choose
from kvworker.route.holdings import Holdings
from kvworker.route.turn import Turn

Decide = Callable[[Collection[WorkerState], Mapping[PassageKey, int]], str | None]
Place = tuple[str, str]
"""A worker's name and address: one that came back elsewhere is another place."""

_FIRST_WAIT_S, _FIRST_BYTES_PER_S = 0.02, 100e6  # until the first answer
_WEIGHT = 0.05  # of one observation
_LOOK_S = 0.25  # how often somebody who waits for a worker looks whether that is still wanted


@dataclass
class Member:
    """One worker: where it is and what is known of it. Changed by its board only."""

    name: str
    address: str
    holdings: Holdings
    seen_at_s: float
    wait_s: float = _FIRST_WAIT_S
    bytes_per_s: float = _FIRST_BYTES_PER_S
    is_serving: bool = True
    is_draining: bool = False
    turns: set[Turn] = field(default_factory=set)


class Board:
    """Knows the workers. Thread-safe; no lock is held while anything is waited for or ended.

    Parameters
    ----------
    device_bytes : int
        Capacity of each worker's device tier.
    decide : callable
        From states and wanted passages to a name, or None; `kvworker.route.choose.choose`, or another to compare it with.
    """

    def __init__(self, device_bytes: int, decide: Decide = choose, clock: Callable[[], float] = time.monotonic) -> None:
        self._device_bytes, self._decide, self._clock = device_bytes, decide, clock
        self._members: dict[str, Member] = {}
        self._changed = threading.Condition()

    def join(self, name: str, address: str) -> None:
        """Add a worker, or say where it is now; one that moved holds nothing, and what it had begun is ended."""
        with self._changed:
            before = self._members.get(name)
            if before is not None and before.address == address:
                return
            self._members[name] = Member(name, address, Holdings(self._device_bytes), self._clock())
            self._changed.notify_all()
        _cancel(before.turns if before else ())

    def leave(self, name: str) -> None:
        """Remove a worker; what it had begun is ended, so that others do it."""
        with self._changed:
            member = self._members.pop(name, None)
            self._changed.notify_all()
        _cancel(member.turns if member else ())

    def drain(self, name: str) -> None:
        """Give a worker nothing more; it finishes what it has."""
        with self._changed:
            if member := self._members.get(name):
                member.is_draining = True

    def alive(self, place: Place) -> None:
        """Note that a worker answers."""
        with self._changed:
            if member := self._at(place):
                member.is_serving, member.seen_at_s = True, self._clock()
                self._changed.notify_all()

    def lost(self, place: Place) -> None:
        """Note that a worker took no request: it is asked nothing until it is seen alive, and holds nothing as far as is known."""
        with self._changed:
            if member := self._at(place):
                member.is_serving = False
                member.holdings.clear()

    def doubt(self, place: Place) -> None:
        """Note that a worker is late: it is given nothing more until it is seen alive, and may finish what it has."""
        with self._changed:
            if member := self._at(place):
                member.is_serving = False

    def give_up(self, place: Place) -> None:
        """Note that a worker is silent, which is worse: what it had begun is ended, so that others do it."""
        self.lost(place)
        with self._changed:
            turns = list(member.turns) if (member := self._at(place)) else []
        _cancel(turns)

    def answered(self, turn: Turn, held: Mapping[PassageKey, int], brought_nbytes: int, brought_s: float, waited_s: float) -> None:
        """Learn from an answer: what the worker has at hand now, how long it took to bring what it had not, and how long it waited."""
        with self._changed:
            if member := self._at(turn.place):
                member.holdings.add(held)
                if brought_nbytes and brought_s > 0:
                    member.bytes_per_s += _WEIGHT * (brought_nbytes / brought_s - member.bytes_per_s)
                if turn.n_before:
                    member.wait_s += _WEIGHT * (waited_s / turn.n_before - member.wait_s)

    def places(self) -> list[Place]:
        """Return everybody's place."""
        with self._changed:
            return [(member.name, member.address) for member in self._members.values()]

    def states(self, wanted: Mapping[PassageKey, int]) -> list[WorkerState]:
        """Return what is known of every worker, as far as it matters for some passages."""
        with self._changed:
            return [self._state(member, wanted) for member in self._members.values()]

    @contextmanager
    def turn(
        self,
        wanted: Mapping[PassageKey, int],
        only: str = "",
        but: Collection[Place] = (),
        patience_s: float = 0.0,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> Iterator[Turn]:
        """Choose a worker and have the block on its account; its call is ended with the block.

        `only` is taken if it takes requests, and places in `but` only where there is no other. While none takes requests and `is_wanted`,
        waits up to `patience_s` for one; then raises TierUnavailableError.
        """
        member = self._pick(wanted, only, but, self._clock() + patience_s, is_wanted)
        with self._changed:
            turn = Turn(member.name, member.address, len(member.turns))
            member.turns.add(turn)
            is_there = self._at(turn.place) is member
        if not is_there:
            turn.cancel()
        try:
            yield turn
        finally:
            with self._changed:
                member.turns.discard(turn)
                self._changed.notify_all()
            turn.cancel()

    def wait_idle(self, name: str, timeout_s: float) -> bool:
        """Wait until a worker has no request of ours left; return whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not (member := self._members.get(name)) or not member.turns, timeout_s)

    def _pick(
        self, wanted: Mapping[PassageKey, int], only: str, but: Collection[Place], ends_s: float, is_wanted: Callable[[], bool]
    ) -> Member:
        """Return the member that is chosen, once there is one."""
        with self._changed:
            while True:
                states = [self._state(member, wanted) for member in self._members.values()]
                rest = [s for s in states if (s.name, self._members[s.name].address) not in but]
                for allowed in ([s for s in states if s.name == only], rest, states):
                    if name := self._decide(allowed, wanted):
                        return self._members[name]
                left_s = ends_s - self._clock()
                if left_s <= 0 or not is_wanted():
                    raise TierUnavailableError(f"none of {len(states)} workers takes requests; try again later, or look why they do not")
                self._changed.wait(min(left_s, _LOOK_S))

    def _at(self, place: Place) -> Member | None:
        """Return the member of a place, unless it is elsewhere by now; the lock is held."""
        member = self._members.get(place[0])
        return member if member and member.address == place[1] else None

    def _state(self, member: Member, wanted: Mapping[PassageKey, int]) -> WorkerState:
        """Return a member's state; the lock is held."""
        return WorkerState(
            member.name,
            member.holdings.of(wanted),
            member.holdings.free_bytes,
            len(member.turns),
            member.wait_s,
            member.bytes_per_s,
            member.is_serving,
            member.is_draining,
            max(0.0, self._clock() - member.seen_at_s),
        )


def _cancel(turns: Iterable[Turn]) -> None:
    for turn in list(turns):
        turn.cancel()
