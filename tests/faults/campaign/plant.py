"""A small cluster of real processes: stores, their Redis, workers, the networks between them, and a front in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from kvstore.server.config import AuthConfig, ServerConfig
from kvworker.route.board import Board
from kvworker.route.fronted import Fronted
from tests.e2e.processes import Process, data_dir, start, stop
from tests.faults.campaign.wire import Wire
from tests.redis_server import RedisServer

MEMORY, DISK = "1MiB", "64MiB"  # a memory that does not hold everything
REDIS_S = 0.3
SKEWED = {"PYTHONPATH": str(Path(__file__).parent / "skewed")}
_STORE = {
    "LARDER_STORE__SERVER__LANES__SHM": "off",  # so that everything passes the networks that are harmed
    "LARDER_STORE__SERVER__LANES__TCP": "false",
    "LARDER_STORE__TIERS__REDIS__TIMEOUT_S": str(REDIS_S),
}
_WORKER = {
    "LARDER_WORKER__WORKER__DEVICE_BYTES": "0",  # every answer needs the stores
    "LARDER_WORKER__MODEL__DEVICE": "cpu",
    "LARDER_WORKER__MODEL__THREADS": "1",
    "LARDER_WORKER__STORE__TIMEOUT_S": "1.0",
}


@dataclass
class StoreNode:
    """A store process, its Redis, and the networks to both."""

    process: Process
    redis: RedisServer
    to_redis: Wire
    to_store: Wire


@dataclass
class Plant:
    """Everything; a context manager that starts it and ends it.

    Parameters
    ----------
    home : Path
        Where all processes keep their files: one tokens file, one secret and one catalog, as on shared storage.
    n_stores : int
        With a disk each but the last, which has Redis alone behind its memory.
    """

    home: Path
    n_stores: int = 2
    n_workers: int = 2
    seed: int = 0
    stores: list[StoreNode] = field(default_factory=list)
    workers: list[Process] = field(default_factory=list)
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
        return self.workers[0].token

    def processes(self) -> dict[str, Process]:
        """Return the processes of ours by name."""
        stores = {f"store {n}": node.process for n, node in enumerate(self.stores)}
        return {**stores, **{f"worker {n}": process for n, process in enumerate(self.workers)}}

    def restart_store(self, number: int, variables: Mapping[str, str] | None = None) -> None:
        """Start a store again at its address, with what its disk has."""
        node = self.stores[number]
        node.process = self._again(node.process, {**_STORE, **(variables or {})})

    def restart_worker(self, number: int) -> None:
        """Start a worker again at its address."""
        self.workers[number] = self._again(self.workers[number], _WORKER)

    def _again(self, process: Process, variables: Mapping[str, str]) -> Process:
        return start(self.home, *process.command[:-1], process.address, variables=variables)

    def _start(self) -> None:
        """Start everything; processes that do not need each other start side by side."""
        for number in range(self.n_stores):
            self._add_store(number)
        self._stack.callback(self._stop)
        addresses = ",".join(f"127.0.0.1:{node.to_store.port}" for node in self.stores)
        command = ("worker", "--store", addresses, "--address", "127.0.0.1:0")
        with ThreadPoolExecutor(self.n_workers) as pool:
            self.workers += pool.map(lambda _: start(self.home, *command, variables=_WORKER), range(self.n_workers))
        self.board = Board(0)
        for number, worker in enumerate(self.workers):
            self.board.join(f"worker {number}", worker.address)
        listening = ServerConfig(address="127.0.0.1:0", metrics_address="", drain_s=5.0)
        self._front = Fronted(listening, AuthConfig(), data_dir(self.home) / "tokens", self.board)
        self._stack.callback(self._front.close)

    def _add_store(self, number: int) -> None:
        redis = self._stack.enter_context(RedisServer())
        to_redis = self._wire(redis.port)
        disk = "0" if self.n_stores > 1 and number == self.n_stores - 1 else DISK
        chunks = str(self.home / f"store-{number}")
        command = ("store", "--memory", MEMORY, "--disk", disk, "--redis", f"redis://127.0.0.1:{to_redis.port}/0")
        variables = {**_STORE, "LARDER_STORE__TIERS__DISK__DIRECTORY": chunks}
        process = start(self.home, *command, "--address", "127.0.0.1:0", variables=variables)
        to_store = self._wire(int(process.address.rpartition(":")[2]))
        self.stores.append(StoreNode(process, redis, to_redis, to_store))

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
