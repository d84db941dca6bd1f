"""One Redis server and the few connections that lead to it."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TypeVar

from kvstore.core.errors import DeadlineError, KVError, TierUnavailableError
from kvstore.store.breaker import Breaker, BusyError
from kvstore.store.redis.client import Control, redis_errors
from kvstore.store.redis.dial import Address, Dialer
from kvstore.store.redis.resp import Connection

T = TypeVar("T")


class Node:
    """Lends connections to one server. Thread-safe; its breaker hears of every connection that fails."""

    def __init__(self, dialer: Dialer, address: Address, breaker: Breaker) -> None:
        self._dialer = dialer
        self.address = address
        self.breaker = breaker
        self._is_closed = False
        # One slot per connection, open or still None. This kind of queue may be put into while the collector interrupts a `get` of it.
        self._slots: queue.SimpleQueue[Connection | None] = queue.SimpleQueue()
        for _ in range(dialer.settings.connections):
            self._slots.put(None)

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
            connection = self._slots.get(timeout=settings.timeout_s)
        except queue.Empty:
            limits = f"all {settings.connections} connections were in use for {settings.timeout_s:.3f} s"
            raise BusyError(f"redis at {self.address}: {limits}; raise connections") from None
        if connection is not None and connection.is_stale():
            connection.close()
            connection = None
        return connection if connection is not None else self._open()

    def give_back(self, connection: Connection) -> None:
        """Take a connection back; one that is owed replies, or failed, is closed."""
        keep = connection.is_clean and not self._is_closed
        if connection.is_clean:
            self.breaker.succeed()
        if not keep:
            connection.close()
        self._slots.put(connection if keep else None)

    def close(self) -> None:
        """Close idle connections now, and lent ones when they come back."""
        self._is_closed = True
        self._close_idle()
        if "_control" in self.__dict__:
            self._control.close()

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

    def _close_idle(self) -> None:
        idle: list[Connection | None] = []
        while not self._slots.empty():
            try:
                idle.append(self._slots.get_nowait())
            except queue.Empty:
                break
        for connection in idle:
            if connection is not None:
                connection.close()
            self._slots.put(None)


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
