"""Which of several stores may be read now: those that answer, and that know of every invalidation that the others know of.

Before a store is read, its epochs are compared with those of all others that answer, and what it missed is raised; then it is ready for
`fresh_s`. A store that fails is down at once, costs nobody anything more, and is tried in the background until it can be settled again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from kvclient.cluster.member import GONE, Member, Server
from kvclient.cluster.members import Members, Resolve, resolve_name
from kvclient.cluster.together import Together
from kvstore.core.api import Scope
from kvstore.core.epochs import Epoch, EpochBook, behind, larger
from kvstore.core.errors import KVError, TierUnavailableError

_LEAVE_S = 30.0
"""How long reads from a store that left may go on."""


@dataclass(frozen=True)
class Pace:
    """How often things are done, in seconds.

    Parameters
    ----------
    fresh_s : float
        How long epochs that were compared count: an invalidation that did not reach a store, and that its client forgot, is seen after this
        at the latest.
    patience_s : float
        How long a request waits for that comparison, at most, before it goes on without a store.
    first_pause_s, longest_pause_s : float
        Pauses between tries of a store that is down, which double.
    resolve_s : float
        How often a name is resolved.
    """

    fresh_s: float = 5.0
    patience_s: float = 0.5
    first_pause_s: float = 0.05
    longest_pause_s: float = 1.0
    resolve_s: float = 5.0


class Roster:
    """The members of a cluster. Thread-safe.

    Parameters
    ----------
    members : Members
        Who they are.
    connect : callable
        From an address to a server; connects with the first call.
    """

    def __init__(
        self,
        members: Members,
        connect: Callable[[str], Server],
        together: Together,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
        resolve: Resolve = resolve_name,
    ) -> None:
        self._who, self._connect, self._together, self._pace = members, connect, together, pace or Pace()
        self._clock, self._resolve = clock, resolve
        self._lock = threading.Lock()
        self._settling = threading.Lock()
        self._members: tuple[Member, ...] = ()
        self._left: list[tuple[float, Member]] = []
        self._book: EpochBook = {}
        self._probing: set[Member] = set()
        self._resolves_at_s, self._is_resolving = self._clock(), False
        self._why: KVError = TierUnavailableError("no store was asked yet")

    def everyone(self) -> tuple[Member, ...]:
        """Return all members that are known now."""
        self._renew()
        return self._members

    def ready(self) -> list[Member]:
        """Return the members that may be read, brought up to date if that is due; those that are down are tried in the background."""
        everyone, now_s = self.everyone(), self._clock()
        if any(not m.is_down and not m.is_ready(now_s) for m in everyone):
            with self._settling:
                now_s = self._clock()
                if any(not m.is_down and not m.is_ready(now_s) for m in everyone):
                    self._settle([m for m in everyone if not m.is_down], self._pace.patience_s)
        for member in everyone:
            if member.is_down and now_s >= member.retry_at_s:
                self.probe(member)
        now_s = self._clock()
        return [m for m in everyone if m.is_ready(now_s)]

    def settle(self, members: Sequence[Member]) -> dict[Member, KVError]:
        """Make members agree on epochs now; return why some could not be brought to it."""
        with self._settling:
            return self._settle(members)

    def epoch(self, scope: Scope) -> int:
        """Return the largest epoch of a scope that any member is known to have."""
        return self._book.get(scope, Epoch(0, b"")).number

    def fail(self, member: Member, why: KVError) -> None:
        """Note that a member did not answer: it is not read again before it was settled. Others may have moved too."""
        with self._lock:
            now_s, self._why = self._clock(), why
            member.fail(now_s, self._pace.first_pause_s, self._pace.longest_pause_s, why)
            self._resolves_at_s = min(self._resolves_at_s, now_s + self._pace.first_pause_s)

    def nobody(self) -> KVError:
        """Return the error for when no member is ready: one that says more than that it is away, if there is one."""
        if isinstance(self._why, GONE):
            names = ", ".join(m.address for m in self._members) or self._who.first
            return TierUnavailableError(f"no store answers of {names}: {self._why}")
        return self._why

    def close(self) -> None:
        """Close all connections."""
        for member in (*self._members, *(member for _, member in self._left)):
            member.server.close()

    def _settle(self, members: Sequence[Member], timeout_s: float | None = None) -> dict[Member, KVError]:
        """Ask for epochs, and raise those of members that are behind; the lock is held."""
        began_s = self._clock()
        asked = self._together.call({m: partial(_pay_and_ask, m, timeout_s) for m in members})
        self._book = larger([self._book, *(m.epochs for m in asked.results)])
        lagging = {m: missed for m in asked.results if (missed := behind(m.epochs, self._book))}
        raised = self._together.call({m: partial(m.ask_epochs, missed, timeout_s) for m, missed in lagging.items()})
        errors = {**asked.errors, **raised.errors}
        for member in members:
            if member in errors:
                self.fail(member, errors[member])
            else:
                with self._lock:
                    member.admit(began_s + self._pace.fresh_s)
        return errors

    def probe(self, member: Member) -> None:
        """Find out in the background whether a member answers, unless that is being done; it has the time of any call to do so."""
        with self._lock:
            if member in self._probing:
                return
            self._probing.add(member)
        if not self._together.behind(partial(self._probe, member)):
            self._probing.discard(member)

    def _probe(self, member: Member) -> None:
        """Ask a member that was down for a sign of life, and settle it with the others when it gives one."""
        try:
            member.ask_epochs({})
            now_s = self._clock()
            self.settle([*(m for m in self._members if m.is_ready(now_s)), member])
        except KVError as error:
            self.fail(member, error)
        finally:
            with self._lock:
                self._probing.discard(member)

    def _renew(self) -> None:
        """Find out who the members are, where that may have changed: at once if none is known, else behind the caller's back."""
        with self._lock:
            now_s = self._clock()
            if self._is_resolving or now_s < self._resolves_at_s or (self._who.listed and self._members):
                return
            self._is_resolving = True
        if not self._members:
            self._look_up()
        elif not self._together.behind(self._look_up):
            self._is_resolving = False

    def _look_up(self) -> None:
        """Resolve and take over who is new and who has left; a name that cannot be resolved changes nothing."""
        try:
            addresses = self._who.addresses(self._resolve)
        except KVError as error:
            addresses, self._why = tuple(m.address for m in self._members), error
        with self._lock:
            now_s, known = self._clock(), {m.address: m for m in self._members}
            self._left += [(now_s, m) for address, m in known.items() if address not in addresses]
            for _, member in (gone := [each for each in self._left if now_s - each[0] >= _LEAVE_S]):
                member.server.close()
            self._left = [each for each in self._left if each not in gone]
            self._members = tuple(known.get(a) or Member(a, self._connect(a), a) for a in addresses)
            pause_s = self._pace.resolve_s if self._members else self._pace.first_pause_s
            self._resolves_at_s, self._is_resolving = now_s + pause_s, False


def _pay_and_ask(member: Member, timeout_s: float | None) -> None:
    """Do what a member missed, and learn its epochs."""
    member.pay()
    member.ask_epochs({}, timeout_s)
