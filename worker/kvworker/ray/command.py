"""`larder worker --ray`: a pool of workers on a Ray cluster behind one address."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvclient.channel import ClientTLS
from kvstore.core.errors import MissingExtraError, TierUnavailableError
from kvstore.server.cli import stop_signals
from kvstore.server.config import load
from kvstore.server.logs import log_to_stderr
from kvstore.server.settings import to_toml
from kvworker.route.board import Board
from kvworker.route.fronted import Fronted
from kvworker.serve.config import ENV_PREFIX, Flags, WorkerConfig

if TYPE_CHECKING:
    from kvworker.ray.pool import Pool

LOCAL = "local"
_OBJECT_STORE_BYTES = 80 << 20  # the least that Ray takes: nothing of ours goes through it


def pool(file: Path | None, flags: Flags, only_print: bool, address: str) -> int:
    """Serve a pool of workers until SIGTERM or SIGINT; return the exit status.

    `address` is a cluster's, "auto" for the one that this machine belongs to, or "local" for one that is started and ended with this.
    """
    config = load(WorkerConfig, (ENV_PREFIX,), file, None, flags)
    if only_print:
        print(to_toml(config))
        return 0
    log_to_stderr(config.server.log_format)
    if address == LOCAL:
        config = replace(config, ray=replace(config.ray, host=config.ray.host or "127.0.0.1"))
    with connected(address), pooled(config) as (front, started):
        stop = stop_signals()  # behind Ray, which sets some of its own
        serving = f"{len(started.board.places())} of {config.ray.workers} workers on Ray serve"
        print(f"larder worker listens on {front.address} ({serving}){front.where}", flush=True)
        stop.wait()
    return 0


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect this process to Ray for the length of the block; raises MissingExtraError, and TierUnavailableError for no cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # says nothing to anybody unless it is told to
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtraError("--ray needs Ray: pip install 'kv-larder[ray]'") from error
    try:
        if address == LOCAL:
            ray.init("local", include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, log_to_driver=False, namespace="larder")
        else:
            ray.init(address, log_to_driver=False, namespace="larder")
    except ConnectionError as error:
        raise TierUnavailableError(f"no Ray cluster at {address}: {error}; start one, or leave the address out") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def pooled(config: WorkerConfig) -> Iterator[tuple[Fronted, Pool]]:
    """Start a pool and the front of it, on the cluster that this process is connected to; drain both at the end."""
    from kvworker.ray.pool import Pool

    pool = Pool(config, Board(config.worker.device_bytes))
    try:
        pool.start()
        front = Fronted(config.server, config.auth, config.local.tokens_path, pool.board, tls_to_actors(config))
        try:
            yield front, pool
        finally:
            front.close()
    finally:
        pool.close()


def tls_to_actors(config: WorkerConfig) -> ClientTLS | None:
    """Return how the front speaks to actors: as they serve, and with the server's own certificate where they ask for one."""
    served = config.server.tls
    shown = (served.cert, served.key) if served.client_ca else ("", "")
    return ClientTLS(config.ray.ca, *shown, config.ray.server_name) if served.cert else None
