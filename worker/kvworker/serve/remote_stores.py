"""A store elsewhere, as each caller of a worker sees it."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from kvclient.channel import discover_token
from kvclient.cluster.connect import connect_stores
from kvclient.cluster.members import Members
from kvclient.cluster.store import ClusterStore
from kvclient.remote import RemoteStore
from kvstore.core.api import StoreAPI
from kvstore.core.errors import AuthError
from kvworker.serve.config import StoreAddress

logger = logging.getLogger(__name__)
MOST_CALLERS = 1024
IDLE_S = 600.0
Transport = RemoteStore | ClusterStore


class RemoteStores:
    """One transport per token, since the store knows callers by their tokens. Thread-safe.

    A transport that nobody asked for in ten minutes is closed, and beyond 1024 of them the one that was used longest ago: a caller with
    tokens of short life leaves none behind.
    """

    def __init__(self, store: StoreAddress, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._open: OrderedDict[str, tuple[Transport, float]] = OrderedDict()  # used longest ago first
        self._own: Transport | None = None

    def __call__(self, tenant: str, token: str) -> StoreAPI:
        """Return the store for a caller; connects with the first call."""
        with self._lock:
            known = self._open.pop(token, None)
            transport = known[0] if known else self._connect(token)
            self._open[token] = transport, self._clock()
            unused = self._take_unused()
        for each in unused:
            each.close()
        return transport

    def own(self, data_path: Path) -> StoreAPI | None:
        """Return the store for the worker's own measurements, or None where no token for it is to be found."""
        try:
            self._own = self._connect(discover_token(Members.parse(self._store.address).first, data_dir=data_path))
        except AuthError as error:
            logger.warning("the store's speed is assumed until the first reads: %s", error)
        return self._own

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            transports = [transport for transport, _ in self._open.values()] + ([self._own] if self._own else [])
            self._open.clear()
        for transport in transports:
            transport.close()

    def _take_unused(self) -> list[Transport]:
        """Take out what was not asked for in a while, or is one too many."""
        taken: list[Transport] = []
        while self._open and (len(self._open) > MOST_CALLERS or next(iter(self._open.values()))[1] < self._clock() - IDLE_S):
            taken.append(self._open.popitem(last=False)[1][0])
        return taken

    def _connect(self, token: str) -> Transport:
        store = self._store
        return connect_stores(store.address, token, store.tls, store.timeout_s, store.replicas)
