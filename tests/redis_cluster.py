"""A real Redis Cluster for tests: masters that share the slots, and replicas that take the place of a master that dies."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

import redis

from kvstore.store.redis.route import N_SLOTS, slot_of
from tests.redis_server import RedisServer

HIGHEST_PORT = 55_535  # a node's second port is 10,000 above its first
_START_S = 20.0


class RedisCluster:
    """Servers that each serve an equal share of the slots, the first masters, and behind them as many replicas; a context manager.

    Parameters
    ----------
    n_masters : int
    n_replicas : int
        Of every master.
    node_timeout_s : float
        How long a node may be silent before the others call it failed.
    """

    def __init__(self, n_masters: int = 3, n_replicas: int = 0, node_timeout_s: float = 60.0) -> None:
        self._n_masters, self._n_replicas = n_masters, n_replicas
        self._options = (
            *("--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"),
            *("--cluster-node-timeout", str(round(node_timeout_s * 1000)), "--repl-diskless-sync", "yes"),
            *("--repl-diskless-sync-delay", "0"),
        )
        self._stack = ExitStack()
        self.servers: list[RedisServer] = []

    @property
    def url(self) -> str:
        """Any node will do."""
        return self.servers[0].url

    def owner(self, name: bytes) -> RedisServer:
        """Return the server that has a key from the beginning."""
        return self.servers[slot_of(name) * self._n_masters // N_SLOTS]

    def keys(self) -> list[int]:
        """Return how many keys each server has."""
        return [int(server.command("DBSIZE")[1:]) for server in self.servers]

    def masters(self) -> list[RedisServer]:
        """Return the servers that run and are masters now; a paused one can't be asked."""
        return [server for server in self.servers if server.is_running and _role(server)[0] == b"master"]

    def is_whole(self) -> bool:
        """Tell whether every server runs, as a master or as a replica that has all its master has."""
        roles = [_role(server) for server in self.servers if server.is_running]
        n_synced = sum(role[0] == b"slave" and role[3] == b"connected" for role in roles)
        return sum(role[0] == b"master" for role in roles) == self._n_masters and n_synced == self._n_masters * self._n_replicas

    def __enter__(self) -> RedisCluster:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def _start(self) -> None:
        """Start all servers, give the masters their slots and the replicas their masters, and wait until they know each other."""
        while len(self.servers) < self._n_masters * (1 + self._n_replicas):
            server = RedisServer(*self._options)
            if server.port <= HIGHEST_PORT:
                self.servers.append(self._stack.enter_context(server))
            else:
                server.__exit__(None, None, None)
        for number, server in enumerate(self.servers):
            mine = [str(slot) for slot in range(N_SLOTS) if slot * self._n_masters // N_SLOTS == number]
            assert not mine or server.command("CLUSTER", "ADDSLOTS", *mine) == b"+OK"
            server.command("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
            for other in self.servers[:number]:
                server.command("CLUSTER", "MEET", "127.0.0.1", str(other.port))
        for number, server in enumerate(self.servers[self._n_masters :]):
            master = node_id(self.servers[number % self._n_masters])
            _until(lambda server=server, master=master: server.command("CLUSTER", "REPLICATE", master) == b"+OK")  # type: ignore[misc]
        _until(self._all_know)
        _until(self.is_whole)

    def _all_know(self) -> bool:
        """Tell whether every node knows who serves every slot."""
        return all(server.command("GET", str(n))[:6] in (b"$-1", b"-MOVED") for server in self.servers for n in range(30))


def node_id(server: RedisServer) -> str:
    """Return the name under which a node knows itself."""
    with redis.Redis(port=server.port, socket_timeout=_START_S) as client:
        return str(client.execute_command("CLUSTER", "MYID").decode())


def _role(server: RedisServer) -> list[object]:
    """Return what a server says it is: a master, or a slave with its master and how far it is with copying that."""
    with redis.Redis(port=server.port, socket_timeout=_START_S) as client:
        return list(client.execute_command("ROLE"))


def _until(is_true: Callable[[], bool]) -> None:
    ends_s = time.monotonic() + _START_S
    while not is_true():
        assert time.monotonic() < ends_s, "the nodes of the Redis Cluster do not find each other"
        time.sleep(0.02)
