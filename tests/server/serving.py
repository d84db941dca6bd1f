"""A real server on a free port of this machine, for the length of a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from kvclient.lanes.choice import LaneName
from kvclient.remote import RemoteStore
from kvclient.retry import Retry
from kvstore.core.tokens import Credential
from kvstore.server.access.auth import TokenAuthenticator, known_tokens
from kvstore.server.config import LanesConfig, ServerConfig
from kvstore.server.grpc_server import RpcServer
from kvstore.server.service import StoreService
from kvstore.server.store_servicer import register_store

TOKENS = {"alpha": "alpha-token-0123456789", "beta": "beta-token-0123456789"}
LANES = LanesConfig(shm="on")  # though there are two tenants
LOOPBACK = ServerConfig(address="127.0.0.1:0", drain_s=0.5, lanes=LANES)


@contextmanager
def serving(service: StoreService, config: ServerConfig = LOOPBACK) -> Iterator[RpcServer]:
    """Serve a store to the tenants of `TOKENS`; stop the server and close the store at the end."""
    server = RpcServer(replace(config, max_blob_bytes=min(config.max_blob_bytes, config.max_inflight_bytes)))
    known = known_tokens(Credential(tenant, token, is_admin=True) for tenant, token in TOKENS.items())
    server.start([register_store(service, TokenAuthenticator(lambda: known), server)])
    try:
        yield server
    finally:
        server.drain()
        service.close()


@contextmanager
def dialing(
    server: RpcServer, tenant: str = "alpha", retry: Retry | None = None, timeout_s: float = 10.0, lane: LaneName = "auto"
) -> Iterator[RemoteStore]:
    """Connect as a tenant, by one lane or by the best; without `retry` every failure is seen at once."""
    remote = RemoteStore(server.address, TOKENS[tenant], timeout_s=timeout_s, retry=retry or Retry(attempts=1), lane=lane)
    try:
        yield remote
    finally:
        remote.close()
