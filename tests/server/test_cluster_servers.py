"""Several real servers behind one client: one that dies, one that hangs, certificates under one name, and a Redis that all share."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from kvclient.channel import ClientTLS
from kvclient.cluster.connect import connect_stores
from kvclient.cluster.members import Members
from kvclient.cluster.roster import Pace
from kvclient.cluster.store import ClusterStore
from kvclient.remote import RemoteStore
from kvclient.retry import Retry
from kvstore.core.api import PutNote, Scope, Status
from kvstore.core.errors import ConfigError, TierUnavailableError
from kvstore.server.config import AuthConfig, DiskConfig, RedisConfig, StoreConfig, TiersConfig, TLSConfig
from kvstore.server.opening import open_store
from kvstore.server.service import StoreService
from tests.certificates import make_certificates
from tests.client.cluster_lab import LabServer, StoreState
from tests.redis_server import RedisServer
from tests.server.chunks import key, make_blob, make_service
from tests.server.serving import LOOPBACK, TOKENS, serving
from tests.server.ways import parts_of, read
from tests.worker.waiting import until

BLOBS = [make_blob(seed) for seed in range(24)]
KEYS = [key(blob) for blob in BLOBS]
PACE = Pace(fresh_s=0.2, first_pause_s=0.01, longest_pause_s=0.1)


@contextmanager
def reaching(addresses: Sequence[str], timeout_s: float = 5.0) -> Iterator[ClusterStore]:
    """Connect to servers as tenant alpha."""

    def connect(address: str) -> RemoteStore:
        return RemoteStore(address, TOKENS["alpha"], timeout_s=timeout_s, retry=Retry(attempts=1))

    with closing(ClusterStore(Members(tuple(addresses)), connect, timeout_s=timeout_s, pace=PACE)) as store:
        yield store


def n_ready(store: ClusterStore) -> int:
    """Return how many of the chunks a lookup finds."""
    return sum(hit.status is Status.READY for hit in store.lookup(KEYS))


def test_a_server_that_dies_is_left_out_and_found_again_at_its_address() -> None:
    """Reads, puts and lookups go on; nothing is an error."""
    with ExitStack() as stack:
        first = stack.enter_context(serving(make_service()))
        second = ExitStack()
        address = second.enter_context(serving(make_service())).address
        with reaching([first.address, address]) as store:
            for blob in BLOBS[:12]:
                store.put(blob, PutNote())
            second.close()
            assert 0 < n_ready(store) < 12
            for blob in BLOBS:
                store.put(blob, PutNote())
            assert [read(store, blob) for blob in BLOBS] == [parts_of(blob) for blob in BLOBS]
            stack.enter_context(serving(make_service(), replace(LOOPBACK, address=address)))
            until(lambda: store.put(BLOBS[0], PutNote()) is not None and len(list(store.stats().tiers)) == 1 and all(available(store)))
            assert n_ready(store) == len(BLOBS)


def available(store: ClusterStore) -> list[bool]:
    """Return whether each tier is on all stores."""
    return [tier.is_available for tier in store.stats().tiers]


def test_a_server_that_hangs_costs_one_timeout_and_then_nothing() -> None:
    """It takes connections and never answers. The bound is far above what an answer takes and far below 24 timeouts."""
    with ExitStack() as stack:
        silent, server = stack.enter_context(socket.create_server(("127.0.0.1", 0))), stack.enter_context(serving(make_service()))
        store = stack.enter_context(reaching([server.address, f"127.0.0.1:{silent.getsockname()[1]}"], timeout_s=1.0))
        started = time.monotonic()
        for blob in BLOBS:
            store.put(blob, PutNote())
            assert read(store, blob) == parts_of(blob)
        assert time.monotonic() - started < 12


def test_one_address_needs_no_cluster() -> None:
    """Nor may a chunk be put to more stores than there are."""
    with closing(connect_stores("127.0.0.1:1", "t" * 16)) as one, closing(connect_stores("127.0.0.1:1,127.0.0.1:2", "t" * 16)) as several:
        assert (type(one), type(several)) == (RemoteStore, ClusterStore)
    with pytest.raises(ConfigError):
        connect_stores("127.0.0.1", "t" * 16)


def test_stores_behind_one_name_are_known_by_certificates_of_that_name(tmp_path: Path) -> None:
    """Nobody makes a certificate for the addresses that a name stands for today."""
    make_certificates(tmp_path)
    tls = TLSConfig(str(tmp_path / "named.pem"), str(tmp_path / "named.key"))
    with serving(make_service(), replace(LOOPBACK, tls=tls)) as server:
        port, ca = server.address.rpartition(":")[2], str(tmp_path / "ca.pem")
        with closing(connect_stores(f"dns:localhost:{port}", TOKENS["alpha"], ClientTLS(ca=ca), timeout_s=5.0)) as store:
            store.put(BLOBS[0], PutNote())
            assert read(store, BLOBS[0]) == parts_of(BLOBS[0])
        store = connect_stores(f"127.0.0.1:{port}", TOKENS["alpha"], ClientTLS(ca=ca), timeout_s=5.0)
        with closing(store), pytest.raises(TierUnavailableError):
            store.put(BLOBS[0], PutNote())


@contextmanager
def on_redis(folder: Path, redis: RedisServer, n: int) -> Iterator[list[StoreService]]:
    """Open stores with directories of their own, one master secret and one Redis."""
    secret = folder / "secret"
    secret.write_text(secrets.token_hex(32))
    secret.chmod(0o600)
    tiers = TiersConfig(disk=DiskConfig(capacity=0), redis=RedisConfig(url=redis.unix_url))
    configs = [StoreConfig(data_dir=str(folder / str(i)), tiers=tiers, auth=AuthConfig(secret_file=str(secret))) for i in range(n)]
    services = [open_store(config) for config in configs]
    try:
        yield services
    finally:
        for service in services:
            service.close()


def embedded(services: Sequence[StoreService]) -> ClusterStore:
    """Return a client of stores in this process."""
    servers = {f"store:{i + 1}": LabServer(service, "alpha", StoreState(service)) for i, service in enumerate(services)}
    return ClusterStore(Members(tuple(servers)), servers.__getitem__, pace=PACE)


def test_a_chunk_of_a_store_that_left_is_found_in_the_shared_tier(tmp_path: Path) -> None:
    """By the store that has its place now."""
    with RedisServer() as redis, on_redis(tmp_path, redis, 3) as services:
        with closing(embedded(services)) as all_three:
            for blob in BLOBS:
                all_three.put(blob, PutNote())
            for service in services:
                service.store.drain(10.0)
        with closing(embedded(services[:2])) as two:
            assert [read(two, blob) for blob in BLOBS] == [parts_of(blob) for blob in BLOBS]


@pytest.mark.parametrize("kind", ["tenant", "model", "source"])
def test_what_was_invalidated_does_not_come_back_with_an_empty_store_on_a_shared_tier(tmp_path: Path, kind: str) -> None:
    """A new directory knows no epochs, and the shared tier still holds the chunks."""
    scope = {"tenant": Scope("tenant"), "model": Scope("model", KEYS[0].namespace.hex()), "source": Scope("source", "a.txt")}[kind]
    with RedisServer() as redis, on_redis(tmp_path, redis, 3) as services:
        with closing(embedded(services[:2])) as two:
            for blob in BLOBS:
                two.put(blob, PutNote(source="a.txt"))
            for service in services[:2]:
                service.store.drain(10.0)
            two.invalidate(scope)
        with closing(embedded(services)) as all_three:
            assert [read(all_three, blob) for blob in BLOBS] == [None] * len(BLOBS)


def test_stores_with_different_master_secrets_do_not_serve_together() -> None:
    """They could not prove epochs to each other; the one that refuses is left out, and the error of a write names why."""
    one, other = make_service(), make_service()
    other._master_secret = bytes(32)
    one.bind("alpha").invalidate(Scope("tenant"))
    with closing(embedded([one, other])) as store:
        store.lookup(KEYS)
        store.lookup(KEYS)
        with pytest.raises(TierUnavailableError, match=r"store:2.*secret_file"):
            store.invalidate(Scope("tenant"))
    for service in (one, other):
        service.close()
