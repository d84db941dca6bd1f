"""A small cluster of real processes: two stores and what is behind them, workers, the networks between, and a front in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from kvclient import Larder
from kvstore.server.config import AuthConfig, ServerConfig
from kvworker.route.board import Board
from kvworker.route.fronted import Fronted
from tests.e2e.processes import Process, data_dir, start, stop
from tests.faults.campaign.small_disk import SmallDisk
from tests.faults.campaign.wire import Wire
from tests.forked import fork
from tests.redis_cluster import RedisCluster
from tests.redis_server import RedisServer
from tests.threads import leave_unnamed, name_threads

MEMORY, DISK, DISK_NBYTES = "1MiB", "24MiB", 32 << 20  # a memory that does not hold everything, and a disk with room for more
REDIS_S = 0.3
NODE_TIMEOUT_S = 1.0
TIMEOUT_S = 1.0
ASK_S = 60.0
MOST_CALLS = 16  # that a server of ours has threads for; one that loses them is soon found out
LISTENING = ServerConfig(address="127.0.0.1:0", metrics_address="", drain_s=5.0, max_workers=MOST_CALLS)
SKEWED = {"PYTHONPATH": str(Path(__file__).parent / "skewed")}
_STORE = {
    "LARDER_STORE__SERVER__MAX_WORKERS": str(MOST_CALLS),
    "LARDER_STORE__TIERS__MEMORY__CAPACITY": MEMORY,
    "LARDER_STORE__SERVER__LANES__SHM": "off",  # so that everything passes the networks that are harmed
    "LARDER_STORE__SERVER__LANES__TCP": "false",
    "LARDER_STORE__TIERS__REDIS__TIMEOUT_S": str(REDIS_S),
    "LARDER_STORE__TIERS__MAX_LEASE_S": "2",
}
_WORKER = {
    "LARDER_WORKER__SERVER__MAX_WORKERS": str(MOST_CALLS),
    "LARDER_WORKER__WORKER__DEVICE_BYTES": "0",  # every answer needs the stores
    "LARDER_WORKER__MODEL__DEVICE": "cpu",
    "LARDER_WORKER__MODEL__THREADS": "1",
    "LARDER_WORKER__STORE__TIMEOUT_S": str(TIMEOUT_S),
}


@dataclass
class Node:
    """A process of ours, and the network to it."""

    process: Process
    wire: Wire
    variables: Mapping[str, str]


@dataclass
class Plant:
    """Everything; a context manager that starts it and ends it.

    The first store has a disk and a Redis, the second one memory and a Redis Cluster of three masters with a replica each.

    Parameters
    ----------
    home : Path
        Where all processes keep their files: one tokens file, one secret and one catalog, as on shared storage.
    """

    home: Path
    n_workers: int = 2
    seed: int = 0
    stores: list[Node] = field(default_factory=list)
    workers: list[Node] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Plant:
        try:
            self._start()
        except BaseException:
            self._stop()
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    @property
    def address(self) -> str:
        """Where callers ask."""
        return self._front.address

    @property
    def token(self) -> str:
        """Who they are."""
        return self.workers[0].process.token

    @property
    def store_addresses(self) -> str:
        """Where workers find both stores."""
        return ",".join(f"127.0.0.1:{node.wire.port}" for node in self.stores)

    def larder(self) -> Larder:
        """Connect as one of them."""
        return Larder(self.address, self.token, timeout_s=ASK_S)

    def processes(self) -> dict[str, Process]:
        """Return the processes of ours by name."""
        return {f"{kind} {n}": node.process for kind, nodes in self._nodes.items() for n, node in enumerate(nodes)}

    def restart(self, node: Node) -> None:
        """Start a process again at its address, with what its disk has."""
        node.process = fork(self.home, *_again(node.process), variables=node.variables)

    def restart_skewed(self, node: Node) -> None:
        """Start a store again, with a clock that goes ahead."""
        node.process = start(self.home, *_again(node.process), variables={**node.variables, **SKEWED})

    @property
    def _nodes(self) -> Mapping[str, list[Node]]:
        return {"store": self.stores, "worker": self.workers}

    def _start(self) -> None:
        """Start everything; what does not need each other starts side by side."""
        name_threads()
        self._stack.callback(leave_unnamed)
        self.redis = self._stack.enter_context(RedisServer())
        self.disk = self._stack.enter_context(SmallDisk(self.home / "disk", DISK_NBYTES))
        self.to_redis = self._wire(self.redis.port)
        self.cluster = RedisCluster(3, 1, NODE_TIMEOUT_S)
        self._stack.push(self.cluster)
        with ThreadPoolExecutor(self.n_workers) as threads:
            has_started = threads.submit(self.cluster.__enter__)
            self._add_store(
                {
                    "DISK__CAPACITY": DISK,
                    "DISK__DIRECTORY": str(self.disk.place / "chunks"),
                    "REDIS__URL": f"redis://127.0.0.1:{self.to_redis.port}/0",
                }
            )
            has_started.result()
            self._add_store({"DISK__CAPACITY": "0", "REDIS__URL": self.cluster.url, "REDIS__CLUSTER": "on"})
            command = ("worker", "--store", self.store_addresses, "--address", "127.0.0.1:0")
            for started in threads.map(lambda _: fork(self.home, *command, variables=_WORKER), range(self.n_workers)):
                self.workers.append(Node(started, self._wire_to(started), _WORKER))
        self._stack.callback(self._stop)
        self._add_front()

    def _add_store(self, tiers: Mapping[str, str]) -> None:
        """Start a store; its chunks, its name and its epochs are its own."""
        shared = {"TOKENS_FILE": data_dir(self.home) / "tokens", "SECRET_FILE": data_dir(self.home) / "secret"}
        variables = {f"LARDER_STORE__AUTH__{name}": str(path) for name, path in shared.items()}
        variables |= {f"LARDER_STORE__TIERS__{name}": value for name, value in tiers.items()}
        variables |= {"LARDER_STORE__DATA_DIR": str(self.home / f"store-{len(self.stores)}"), **_STORE}
        started = fork(self.home, "store", "--address", "127.0.0.1:0", variables=variables)
        self.stores.append(Node(started, self._wire_to(started), variables))

    def _add_front(self) -> None:
        self.board = Board(0)
        for number, worker in enumerate(self.workers):
            self.board.join(f"worker {number}", f"127.0.0.1:{worker.wire.port}")
        self._front = Fronted(LISTENING, AuthConfig(), data_dir(self.home) / "tokens", self.board)
        self._stack.callback(self._front.close)

    def _wire_to(self, process: Process) -> Wire:
        return self._wire(int(process.address.rpartition(":")[2]))

    def _wire(self, port: int) -> Wire:
        wire = Wire(port, self.seed)
        self._stack.callback(wire.close)
        return wire

    def _stop(self) -> None:
        """End the processes, in any state."""
        running = [process for process in self.processes().values() if process.popen.poll() is None]
        calls: list[Callable[[], int]] = [lambda process=process: stop(process) for process in running]  # type: ignore[misc]
        with ThreadPoolExecutor(max(1, len(calls))) as pool:
            for done in [pool.submit(call) for call in calls]:
                done.result()


def _again(process: Process) -> tuple[str, ...]:
    """Return the command that starts a process at the address that it had."""
    return (*process.command[:-1], process.address)
