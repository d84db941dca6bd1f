"""Answers per second of one worker process and of several on the same cores, behind one front."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path

from kvstore.server.config import AuthConfig, ServerConfig
from kvworker.bench.callers import Callers
from kvworker.bench.rows import Bench, Row
from kvworker.bench.transport_processes import running_store, server
from kvworker.route.board import Board
from kvworker.route.fronted import Fronted
from kvworker.serve.config import ModelConfig, StoreAddress, WorkerConfig
from kvworker.settings import WorkerSettings

SERVER = ServerConfig(address="127.0.0.1:0", metrics_address="", drain_s=5.0)
_STORE_BYTES = 512 << 20
_DEVICE_BYTES = 64 << 20


def rates(bench: Bench, folder: Path, sizes: Sequence[int], n_documents: int, seconds: float) -> Iterator[Row]:
    """Yield answers per second of 1 worker and of each number of `sizes`, and their ratio to 1; failed requests are counted."""
    with running_store(folder, _STORE_BYTES) as store:
        one = None
        for size in (1, *sizes):
            with ExitStack() as stack:
                board = Board(_DEVICE_BYTES)
                for n in range(size):
                    board.join(f"worker-{n}", stack.enter_context(server(serve_worker, folder, store.address)).address)
                front = Fronted(SERVER, AuthConfig(), folder / "tokens", board)
                stack.callback(front.close)
                callers = stack.enter_context(Callers(front.address, store.token, n_documents))
                rate, n_failed = callers.ask_for(seconds)
            one = one or rate
            yield bench.row("front", "answers", "1/s", size, [rate])
            yield bench.row("front", "answers_over_one_worker", "ratio", size, [rate / one])
            yield bench.row("front", "failed", "requests", size, [n_failed])


def serve_worker(pipe: Connection, folder: Path, store: str) -> None:
    """Serve a worker with one thread until the pipe ends."""
    from kvworker.serve.processes import ServedWorker

    settings = WorkerSettings(policy="none", device_bytes=_DEVICE_BYTES)
    config = WorkerConfig(str(folder), SERVER, store=StoreAddress(store), model=ModelConfig(device="cpu", threads=1), worker=settings)
    with ServedWorker(config) as served, suppress(EOFError, KeyboardInterrupt):
        pipe.send(served.address)
        pipe.recv()
