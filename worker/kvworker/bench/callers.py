"""Callers that ask a front about documents, several at once, and count its answers."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from types import TracebackType

from kvclient import Larder
from kvclient.retry import Retry
from kvstore.core.errors import KVError
from kvworker.bench.routing_lab import N_TOKENS, documents, zipf

_N_CALLERS = 4
_TIMEOUT_S = 60.0
_N_TRACE = 100_000


class Callers:
    """Stores documents and asks about each once, at its start; then asks about them by Zipf's law. A context manager."""

    def __init__(self, address: str, token: str, n_documents: int) -> None:
        self._documents = documents(n_documents)
        self._trace = zipf(n_documents, _N_TRACE, 0.7, 0)
        self._larder = Larder(address, token, timeout_s=_TIMEOUT_S, retry=Retry(1))
        self._counts, self._lock = {True: 0, False: 0}, threading.Lock()

    def __enter__(self) -> Callers:
        self._ids = [self._larder.ingest(document.source, document.passages).ids for document in self._documents]
        for n in range(len(self._documents)):
            self._ask(n)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._larder.close()

    def ask_for(self, seconds: float) -> tuple[float, int]:
        """Ask for a while, from the beginning of the trace; return answers per second, and how many requests failed."""
        self._counts = {True: 0, False: 0}
        began_s = time.monotonic()
        threads = [threading.Thread(target=self._keep_asking, args=(n, began_s + seconds)) for n in range(_N_CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self._counts[True] / (time.monotonic() - began_s), self._counts[False]

    def _keep_asking(self, first: int, ends_s: float) -> None:
        for n in self._trace[first::_N_CALLERS]:
            if time.monotonic() >= ends_s:
                return
            is_right = False
            with suppress(KVError):
                self._ask(n)
                is_right = True
            with self._lock:
                self._counts[is_right] += 1

    def _ask(self, n: int) -> None:
        self._larder.ask(self._ids[n], self._documents[n].question, max_tokens=N_TOKENS, policy="none", planner="always_load").finish()
