"""Answers per second of one worker process and of several on the same cores, behind one front."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path

from kvclient import Larder
from kvclient.retry import Retry
from kvstore.core.errors import KVError
from kvstore.server.config import AuthConfig, ServerConfig
from kvworker.bench.routing_lab import N_TOKENS, documents, zipf
from kvworker.bench.rows import Bench, Row
from kvworker.bench.transport_processes import Server, running_store, server
from kvworker.route.board import Board
from kvworker.route.fronted import Fronted
from kvworker.serve.config import ModelConfig, StoreAddress, WorkerConfig
from kvworker.settings import WorkerSettings

_N_CALLERS = 4
_SERVER = ServerConfig(address="127.0.0.1:0", metrics_address="", drain_s=5.0)
_STORE_BYTES = 512 << 20
_DEVICE_BYTES = 64 << 20
_TIMEOUT_S = 60.0
_N_TRACE = 100_000


def rates(bench: Bench, folder: Path, sizes: Sequence[int], n_documents: int, seconds: float) -> Iterator[Row]:
    """Yield answers per second of 1 worker and of each number of `sizes`, and their ratio to 1; failed requests are counted."""
    with running_store(folder, _STORE_BYTES) as store:
        one = None
        for size in (1, *sizes):
            with ExitStack() as stack:
                board = Board(_DEVICE_BYTES)
                for n in range(size):
                    board.join(f"worker-{n}", stack.enter_context(server(serve_worker, folder, store.address)).address)
                front = Fronted(_SERVER, AuthConfig(), folder / "tokens", board)
                stack.callback(front.close)
                rate, n_failed = _measure(front.address, store, n_documents, seconds)
            one = one or rate
            yield bench.row("front", "answers", "1/s", size, [rate])
            yield bench.row("front", "answers_over_one_worker", "ratio", size, [rate / one])
            yield bench.row("front", "failed", "requests", size, [n_failed])


def serve_worker(pipe: Connection, folder: Path, store: str) -> None:
    """Serve a worker with one thread until the pipe ends."""
    from kvworker.serve.processes import ServedWorker

    settings = WorkerSettings(policy="none", device_bytes=_DEVICE_BYTES)
    config = WorkerConfig(str(folder), _SERVER, store=StoreAddress(store), model=ModelConfig(device="cpu", threads=1), worker=settings)
    with ServedWorker(config) as served, suppress(EOFError, KeyboardInterrupt):
        pipe.send(served.address)
        pipe.recv()


def _measure(address: str, store: Server, n_documents: int, seconds: float) -> tuple[float, int]:
    """Store documents, ask about each once, and then for a while about them by Zipf's law; return the rate, and how many failed."""
    found, trace = documents(n_documents), zipf(n_documents, _N_TRACE, 0.7, 0)
    counts, lock = {True: 0, False: 0}, threading.Lock()
    with Larder(address, store.token, timeout_s=_TIMEOUT_S, retry=Retry(1)) as larder:
        ids = [larder.ingest(document.source, document.passages).ids for document in found]

        def ask(n: int) -> None:
            larder.ask(ids[n], found[n].question, max_tokens=N_TOKENS, policy="none", planner="always_load").finish()

        def keep_asking(first: int) -> None:
            for n in trace[first::_N_CALLERS]:
                if time.monotonic() >= ends_s:
                    return
                is_right = False
                with suppress(KVError):
                    ask(n)
                    is_right = True
                with lock:
                    counts[is_right] += 1

        for n in range(n_documents):
            ask(n)
        ends_s = time.monotonic() + seconds
        callers = [threading.Thread(target=keep_asking, args=(n,)) for n in range(_N_CALLERS)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    return counts[True] / seconds, counts[False]
