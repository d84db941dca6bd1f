"""One Redis server and the few connections that lead to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from queue import Empty
from typing import Protocol, TypeVar
from weakref import ref

from kvstore.core.errors import DeadlineError, KVError, TierUnavailableError
from kvstore.store.breaker import Breaker, BusyError
from kvstore.store.redis.client import Control, redis_errors
from kvstore.store.redis.dial import Address, Dialer
from kvstore.store.redis.resp import Connection
from kvstore.store.redis.slots import Slots

T = TypeVar("T")


class Borrower(Protocol):
    """Whoever keeps a connection for longer than one call."""

    def yield_idle(self) -> None:
        """Give connections back that are not used right now, since somebody waits for one. Does not block."""


class Node:
    """Lends connections to one server. Thread-safe; its breaker hears of every connection that fails.

    Whoever waits for a connection gets it behind those who waited before, and has idle borrowers asked to do without theirs.
    """

    def __init__(self, dialer: Dialer, address: Address, breaker: Breaker) -> None:
        self._dialer = dialer
        self.address = address
        self.breaker = breaker
        self._is_closed = False
        self._slots: Slots[Connection | None] = Slots([None] * dialer.settings.connections)  # open ones, or None for one yet to be opened
        self._borrowers: dict[Connection, ref[Borrower]] = {}

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for a connection."""
        return self._slots.is_wanted

    def ask_control(self, ask: Callable[[Control], T]) -> T:
        """Return what `ask` gets from redis-py's client; raises TierUnavailableError or DeadlineError."""
        self.breaker.check()
        try:
            with redis_errors(f"redis at {self.address}"):
                said = ask(self._control)
        except (TierUnavailableError, DeadlineError):
            self.breaker.fail()
            raise
        self.breaker.succeed()
        return said

    def lease(self) -> Connection:
        """Return a connection for one caller, who gives it back; raises BusyError, TierUnavailableError or DeadlineError."""
        settings = self._dialer.settings
        self.breaker.check()
        try:
            connection = self._slots.take(settings.timeout_s, self._press)
        except Empty:
            limits = f"all {settings.connections} connections were in use for {settings.timeout_s:.3f} s"
            raise BusyError(f"redis at {self.address}: {limits}; raise connections") from None
        if connection is not None and connection.is_stale():
            connection.close()
            connection = None
        return connection if connection is not None else self._open()

    def lend_to(self, borrower: Borrower, connection: Connection) -> None:
        """Note who keeps a leased connection beyond a call, and is asked to yield it when others wait."""
        self._borrowers[connection] = ref(borrower)

    def give_back(self, connection: Connection) -> None:
        """Take a connection back; one that is owed replies, or failed, is closed."""
        self._borrowers.pop(connection, None)
        keep = connection.is_clean and not self._is_closed
        if connection.is_clean:
            self.breaker.succeed()
        if not keep:
            connection.close()
        self._slots.put(connection if keep else None)

    def close(self) -> None:
        """Close idle connections now, and lent ones when they come back."""
        self._is_closed = True
        for connection in self._slots.drain():
            if connection is not None:
                connection.close()
            self._slots.put(None)
        if "_control" in self.__dict__:
            self._control.close()

    def _press(self) -> None:
        """Ask those who keep a connection to yield it if it is idle, one by one as long as somebody waits."""
        for borrower in self._borrowers.copy().values():
            found = borrower()
            if found is not None and self.is_wanted:
                found.yield_idle()

    @cached_property
    def _control(self) -> Control:
        return self._dialer.control(self.address)

    def _open(self) -> Connection:
        try:
            return self._dialer.dial(self.address, self.breaker.fail)
        except BaseException as error:
            self._slots.put(None)
            if isinstance(error, TierUnavailableError | DeadlineError):
                self.breaker.fail()
            raise


class Leases:
    """One connection to each of several nodes, lent together and given back together. Closing is safe at any time, and again.

    They are always lent in the same order, so that two callers never wait for each other. `errors` says which nodes could not be reached.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._lent: dict[Node, Connection] = {}
        self.errors: dict[Node, KVError] = {}
        for node in sorted(set(nodes), key=lambda node: node.address):
            try:
                self._lent[node] = node.lease()
            except (TierUnavailableError, DeadlineError) as error:
                self.errors[node] = error

    def __getitem__(self, node: Node) -> Connection:
        """Return the connection to a node that could be reached."""
        return self._lent[node]

    def lend_to(self, borrower: Borrower) -> None:
        """Note who keeps all of them beyond a call."""
        for node, connection in self._lent.items():
            node.lend_to(borrower, connection)

    def require(self) -> None:
        """Give everything back and raise the error of a node that could not be reached, if there is one."""
        for error in self.errors.values():
            self.close()
            raise error

    def close(self) -> None:
        """Give every connection back."""
        while self._lent:
            node, connection = self._lent.popitem()
            node.give_back(connection)
