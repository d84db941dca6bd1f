"""Fixtures of the client's tests: a fake server, and both clients behind one interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from kvclient import Retry
from tests.client.cluster_lab import ClusterLab
from tests.client.fake_server import TOKEN, FakeServer
from tests.client.twins import Asyncio, Threads, Twin


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """Serve store and worker."""
    fake = FakeServer()
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def store_only() -> Iterator[FakeServer]:
    """Serve a store without a worker."""
    fake = FakeServer()
    fake.start(has_worker=False)
    yield fake
    fake.stop()


@pytest.fixture
def lab() -> Iterator[ClusterLab]:
    """Three empty stores."""
    with ClusterLab() as lab:
        yield lab


@pytest.fixture(params=[Threads, Asyncio], ids=["threads", "asyncio"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Twin]]:
    """Yield a function that opens a client, of each kind in turn, and closes it behind the test."""
    opened: list[Twin] = []

    def open_twin(server: FakeServer, **options: object) -> Twin:
        opened.append(request.param(server.address, TOKEN, **{"retry": Retry(first_pause_s=0.001, seed=0), **options}))
        return opened[-1]

    yield open_twin
    for twin in opened:
        twin.close()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """Give every test a token and an address where nobody listens, and no files of this user."""
    monkeypatch.setenv("LARDER_TOKEN", TOKEN)
    monkeypatch.setenv("LARDER_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("LARDER_CA", raising=False)
