"""Which lane client and store agree on, and what happens when it fails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvclient.lanes import choice
from kvclient.lanes.choice import LaneName
from kvclient.remote import RemoteStore
from kvclient.retry import Retry
from kvstore.core.api import PutNote
from kvstore.core.errors import ConfigError, TierUnavailableError, UnsupportedError
from kvstore.server.config import LanesConfig
from kvstore.server.grpc_server import RpcServer
from kvstore.server.lanes import doors
from kvstore.server.service import StoreService
from tests.server.chunks import key, make_blob, make_service
from tests.server.serving import LOOPBACK, TOKENS, dialing, serving
from tests.server.ways import LANES, parts_of, read

BLOB = make_blob(part_nbytes=50_000)


@pytest.fixture
def service() -> Iterator[StoreService]:
    """A store with a chunk in it."""
    made = make_service()
    made.bind("alpha").put(BLOB, PutNote())
    yield made
    made.close()


@pytest.fixture
def server(service: StoreService) -> Iterator[RpcServer]:
    """A server with every lane."""
    with serving(service) as running:
        yield running


def offering(service: StoreService, **lanes: object) -> "Iterator[RpcServer]":
    """Serve with some lanes."""
    return serving(service, replace(LOOPBACK, lanes=LanesConfig(**lanes)))  # type: ignore[arg-type, return-value]


def test_auto_is_shared_memory_on_the_same_machine(server: RpcServer) -> None:
    with dialing(server) as remote:
        assert remote.lane() == "shm"
        assert read(remote, BLOB) == parts_of(BLOB)
        assert remote.lane() == "shm"
