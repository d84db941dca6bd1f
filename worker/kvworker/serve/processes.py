"""Run a worker as a server: with its store in the same process (`larder up`), or with a store elsewhere (`larder worker`)."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from kvproto.v1 import context_pb2 as pb
from kvstore.core.allocator import keep_large_blocks, leave_alone
from kvstore.server.access.audit import open_audit
from kvstore.server.access.auth import Authenticate, open_authenticator
from kvstore.server.cli import stop_signals
from kvstore.server.config import ENV_PREFIX as STORE_PREFIX
from kvstore.server.config import ServerConfig, load
from kvstore.server.grpc_server import Registration, RpcServer
from kvstore.server.logs import log_to_stderr
from kvstore.server.observe.opening import observing
from kvstore.server.observe.server_source import ServerSource
from kvstore.server.observe.source import Source
from kvstore.server.observe.store_source import StoreSource
from kvstore.server.opening import describe
from kvstore.server.settings import to_toml
from kvstore.server.store_servicer import register_store
from kvworker.serve.config import ENV_PREFIX, Flags, UpConfig, WorkerConfig
from kvworker.serve.local import Local, open_engine
from kvworker.serve.registration import registration
from kvworker.serve.remote_stores import RemoteStores
from kvworker.serve.runtime import Worker
from kvworker.serve.servicer import ContextServicer, StoreOf
from kvworker.serve.worker_source import WorkerSource

logger = logging.getLogger(__name__)


def up(file: Path | None, flags: Flags, only_print: bool) -> int:
    """Serve store and worker on one address until SIGTERM or SIGINT; return the exit status."""
    config = load(UpConfig, (STORE_PREFIX, ENV_PREFIX), file, None, flags)
    if only_print:
        print(to_toml(config))
        return 0
    stop = stop_signals()
    prepare(config.server)
    authenticate = open_authenticator(config.local.tokens_path, config.auth)
    with Local(config, is_shared=config.server.lanes.shm != "off") as local:
        local.worker.compile_codecs()
        server = RpcServer(config.server, open_audit(config.auth))
        context = _register_context(local.worker, authenticate, lambda tenant, _: local.service.bind(tenant), "")
        server.start([register_store(local.service, authenticate, server), context])
        sources: list[Source] = [
            StoreSource(local.service, config.server.metrics_tenants),
            ServerSource(server, local.service.lane_calls),
            worker_source(local.worker, config.server),
        ]
        leave_alone()
        with observing("up", server, sources, authenticate) as where:
            print(f"larder listens on {server.address} ({_model_line(local.worker)}; {describe(config.local)}){where}", flush=True)
            stop.wait()
            server.drain()
    return 0


def worker(file: Path | None, flags: Flags, only_print: bool) -> int:
    """Serve a worker whose store is elsewhere until SIGTERM or SIGINT; return the exit status."""
    config = load(WorkerConfig, (ENV_PREFIX,), file, None, flags)
    if only_print:
        print(to_toml(config))
        return 0
    stop = stop_signals()
    prepare(config.server)
    with ServedWorker(config) as served:
        leave_alone()
        told = f"{_model_line(served.worker)}; store {config.store.address}"
        print(f"larder worker listens on {served.address} ({told}){served.where}", flush=True)
        stop.wait()
    return 0


class ServedWorker:
    """A worker on the wire whose store is elsewhere; a context manager that finishes what runs and closes everything."""

    def __init__(self, config: WorkerConfig) -> None:
        authenticate, data_path = open_authenticator(config.local.tokens_path, config.auth), config.local.data_path
        if config.store.is_plain_to_others:
            logger.warning("store.address %s leads to other machines in plain text: allow_plaintext is set", config.store.address)
        self._stores = RemoteStores(config.store)
        engine = open_engine(config.model, data_path)
        self.worker = Worker(engine, config.worker, self._stores.own(data_path), data_path, config.model.path)
        self.worker.compile_codecs()
        self._server = RpcServer(config.server, open_audit(config.auth))
        try:
            self._server.start([_register_context(self.worker, authenticate, self._stores, config.store.address)])
            sources: list[Source] = [ServerSource(self._server), worker_source(self.worker, config.server)]
            self._pages = ExitStack()
            self.where = self._pages.enter_context(observing("worker", self._server, sources, authenticate))
        except BaseException:
            self._close()
            raise

    @property
    def address(self) -> str:
        """Where it listens, with the port that was bound."""
        return self._server.address

    def close(self) -> None:
        """Take no new calls, let running ones finish for a while, and close everything."""
        self._server.drain()
        self._pages.close()
        self._close()

    def _close(self) -> None:
        self.worker.close()
        self._stores.close()

    def __enter__(self) -> ServedWorker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _register_context(context_worker: Worker, authenticate: Authenticate, store_of: StoreOf, store_address: str) -> Registration:
    """Return the context service for a server."""
    identity, settings = context_worker.engine.identity, context_worker.settings
    info = pb.InfoResponse(
        model=identity.name,
        namespace=identity.namespace.hex(),
        device=context_worker.engine.device,
        codec=settings.codec,
        policy=settings.policy,
        planner=settings.planner,
        max_context_tokens=context_worker.engine.max_context_tokens,
        store_address=store_address,
    )
    return registration(ContextServicer(context_worker, authenticate, store_of, info))


def worker_source(context_worker: Worker, server: ServerConfig) -> WorkerSource:
    """Return what can be seen of a worker."""
    return WorkerSource(context_worker.ledger, lambda: context_worker.held_bytes, server.metrics_tenants)


def _model_line(context_worker: Worker) -> str:
    """Say in a few words what is served."""
    return f"model {context_worker.engine.identity.name} on {context_worker.engine.device}, codec {context_worker.settings.codec}"


def prepare(server: ServerConfig) -> None:
    """Keep large blocks of memory from now on, and log to standard error."""
    keep_large_blocks()
    log_to_stderr(server.log_format)
