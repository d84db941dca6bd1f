"""A few stores and as many workers on Ray behind a front, and callers that ask for a while."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from kvstore.core.errors import TierUnavailableError
from kvworker.bench.callers import Callers
from kvworker.bench.routing_rate import SERVER
from kvworker.bench.transport_processes import running_store
from kvworker.ray.settings import RaySettings
from kvworker.route.board import Board
from kvworker.serve.config import ModelConfig, StoreAddress, WorkerConfig
from kvworker.settings import WorkerSettings

_STORE_BYTES = 512 << 20
_CPUS = 0.1  # of those that Ray counts: all share the ones that there are
_START_S = 60.0


@contextmanager
def on_ray() -> Iterator[None]:
    """Connect to a Ray of this machine; raises MissingExtraError."""
    from kvworker.ray.command import LOCAL, connected

    with connected(LOCAL):
        yield


class Lab:
    """Stores and workers with documents that are stored and were asked about; a context manager.

    Parameters
    ----------
    size : int
        Stores, and workers.
    device_bytes : int
        Device memory of each worker.
    """

    def __init__(self, folder: Path, size: int, n_documents: int, device_bytes: int) -> None:
        self._folder, self.size, self._n_documents, self._device_bytes = folder, size, n_documents, device_bytes
        self._stack = ExitStack()
        self.rates: list[float] = []
        self.n_failed = 0

    def __enter__(self) -> Lab:
        with ExitStack() as stack:
            self._open(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def ask_for(self, seconds: float) -> None:
        """Ask, and note the rate of answers and how many failed."""
        rate, n_failed = self._callers.ask_for(seconds)
        self.rates.append(rate)
        self.n_failed += n_failed

    def _open(self, stack: ExitStack) -> None:
        """Start stores and workers, and store the documents."""
        from kvworker.ray.command import pooled

        self._folder.mkdir()
        stores = [stack.enter_context(running_store(self._folder / str(n), _STORE_BYTES, self._folder)) for n in range(self.size)]
        config = WorkerConfig(
            str(self._folder),
            SERVER,
            store=StoreAddress(",".join(store.address for store in stores)),
            model=ModelConfig(device="cpu", threads=1),
            worker=WorkerSettings(policy="none", device_bytes=self._device_bytes),
            ray=RaySettings(workers=self.size, cpus=_CPUS, host="127.0.0.1"),
        )
        front, pool = stack.enter_context(pooled(config))
        _wait(pool.board, self.size)
        self._callers = stack.enter_context(Callers(front.address, stores[0].token, self._n_documents))


def _wait(board: Board, n_workers: int) -> None:
    """Wait until so many workers serve; raises TierUnavailableError."""
    ends_s = time.monotonic() + _START_S
    while (n := sum(state.is_serving for state in board.states({}))) < n_workers:
        if time.monotonic() > ends_s:
            raise TierUnavailableError(f"{n} of {n_workers} workers on Ray serve after {_START_S:.0f} s")
        time.sleep(0.1)
