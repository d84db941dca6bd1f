"""Which lane client and store agree on, and what happens when it fails."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from kvclient.lanes import choice
from kvclient.lanes.choice import LaneName
from kvclient.lanes.tcp import TcpLane
from kvclient.remote import RemoteStore
from kvclient.retry import Retry
from kvstore.core.api import PutNote
from kvstore.core.errors import ConfigError, TierUnavailableError, UnsupportedError
from kvstore.server.config import LanesConfig
from kvstore.server.grpc_server import RpcServer
from kvstore.server.service import StoreService
from tests.lanes.raw import offer
from tests.server.chunks import key, make_blob, make_service
from tests.server.serving import LOOPBACK, TOKENS, dialing, serving
from tests.server.ways import LANES, parts_of, read

BLOB = make_blob(part_nbytes=50_000)
STUBBORN = Retry(attempts=50, longest_pause_s=0.1, seed=1)


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


def offering(service: StoreService, lanes: LanesConfig) -> AbstractContextManager[RpcServer]:
    """Serve with some lanes."""
    return serving(service, replace(LOOPBACK, lanes=lanes))


def serves(remote: RemoteStore, lane: str) -> bool:
    """Tell whether a chunk comes as it is, and by this lane."""
    return read(remote, BLOB) == parts_of(BLOB) and remote.lane() == lane


def until_lane(remote: RemoteStore, lane: str) -> None:
    """Read until it goes by a lane."""
    ends = time.monotonic() + 10
    while not serves(remote, lane) and time.monotonic() < ends:
        threading.Event().wait(0.01)
    assert serves(remote, lane)


def test_auto_is_shared_memory_on_the_same_machine(server: RpcServer) -> None:
    """The fastest that both can use."""
    with dialing(server) as remote:
        assert serves(remote, "shm")


@pytest.mark.parametrize("mode", ["off", "auto"])
def test_auto_is_tcp_where_shared_memory_is_off(service: StoreService, mode: str) -> None:
    """As it is for two tenants, unless somebody turns it on."""
    with offering(service, LanesConfig(shm=mode)) as server, dialing(server) as remote:
        assert serves(remote, "tcp")


def test_auto_is_tcp_for_another_machine(server: RpcServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path means nothing there, even where such a file is."""
    monkeypatch.setattr(choice, "machine_id", lambda: "another machine")
    with dialing(server) as remote:
        assert serves(remote, "tcp")


def test_auto_is_tcp_where_the_socket_cannot_be_seen(server: RpcServer) -> None:
    """A container has files of its own."""
    Path(offer(server).shm_path).unlink()
    with dialing(server) as remote:
        assert serves(remote, "tcp")


def test_auto_is_grpc_where_nothing_else_is_offered(service: StoreService) -> None:
    """It works wherever the store can be asked at all."""
    with offering(service, LanesConfig(shm="off", tcp=False)) as server, dialing(server) as remote:
        assert serves(remote, "grpc")


@pytest.mark.parametrize("lane", LANES)
def test_a_lane_that_was_asked_for_is_taken(server: RpcServer, lane: LaneName) -> None:
    """And no other."""
    with dialing(server, lane=lane) as remote:
        assert serves(remote, lane)


@pytest.mark.parametrize("lane", ["shm", "tcp"])
def test_a_lane_that_was_asked_for_and_is_not_offered_is_refused(service: StoreService, lane: LaneName) -> None:
    """Who measures one lane must not measure another."""
    with offering(service, LanesConfig(shm="off", tcp=False)) as server, dialing(server, lane=lane) as remote:
        for call in (lambda: remote.get(key(BLOB)), lambda: remote.put(BLOB, PutNote()), remote.lane):
            with pytest.raises(UnsupportedError, match=f"no lane {lane}"):
                call()


def test_a_lane_that_does_not_exist_is_refused_when_the_store_is_made() -> None:
    """With those that do."""
    with pytest.raises(ConfigError, match="auto, shm, tcp, grpc"):
        RemoteStore("127.0.0.1:1", TOKENS["alpha"], lane="pigeon")  # type: ignore[arg-type]


def test_only_shared_memory_can_be_viewed(server: RpcServer) -> None:
    """A caller that wants no copy is not given one."""
    with dialing(server, lane="tcp") as remote, pytest.raises(UnsupportedError, match="shares no memory"):
        remote.view(key(BLOB))


def test_shared_memory_that_fails_is_replaced_by_tcp_and_comes_back(server: RpcServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One failure is seen; the next call goes another way, until the pause is over."""
    path = Path(offer(server).shm_path)
    away = path.rename(path.with_name("away"))
    socket_that_nobody_serves(path)
    with dialing(server) as remote:
        with pytest.raises(TierUnavailableError):
            remote.get(key(BLOB))
        assert serves(remote, "tcp")
        away.rename(path)
        assert serves(remote, "tcp")
        monkeypatch.setattr(choice, "PAUSE_S", 0.05)
        until_lane(remote, "shm")


def socket_that_nobody_serves(path: Path) -> None:
    """Leave what a killed server leaves."""
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def test_tcp_that_fails_is_replaced_by_grpc_and_comes_back(service: StoreService, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, one step down."""
    dial = TcpLane._dial

    def fail(lane: TcpLane, deadline: float) -> None:
        raise TierUnavailableError("a firewall")

    with offering(service, LanesConfig(shm="off")) as server, dialing(server, retry=STUBBORN) as remote:
        monkeypatch.setattr(TcpLane, "_dial", fail)
        assert serves(remote, "grpc")
        monkeypatch.setattr(TcpLane, "_dial", dial)
        assert serves(remote, "grpc")
        monkeypatch.setattr(choice, "PAUSE_S", 0.05)
        until_lane(remote, "tcp")


def test_what_is_being_read_goes_on_when_its_lane_is_given_up(server: RpcServer) -> None:
    """A failure of one call is no verdict on another."""
    with dialing(server) as remote:
        reader = remote.get(key(BLOB))
        remote._lanes.failed(remote._lanes.take(time.monotonic() + 5), TierUnavailableError("another call failed"))
        assert remote.lane() == "tcp"
        assert reader is not None
        assert [bytes(reader.part(index)) for index in range(3)] == parts_of(BLOB)


@pytest.mark.parametrize("lane", ["auto", *LANES])
def test_a_store_that_was_restarted_is_found_again_by_the_same_lane(lane: LaneName, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has new memory, a new socket and a new port then; nobody tells the client."""
    monkeypatch.setattr(choice, "PAUSE_S", 0.05)
    with serving(make_service()) as first:
        address = first.address
        remote = RemoteStore(address, TOKENS["alpha"], retry=STUBBORN, lane=lane)
        remote.put(BLOB, PutNote())
        assert read(remote, BLOB) == parts_of(BLOB)
    with serving(make_service(), replace(LOOPBACK, address=address)):
        assert read(remote, BLOB) is None
        assert remote.put(BLOB, PutNote()).stored
        until_lane(remote, "shm" if lane == "auto" else lane)
        remote.close()


def test_a_store_that_is_closed_opens_no_connection_any_more(server: RpcServer) -> None:
    """Whatever lane was used."""
    for lane in LANES:
        with dialing(server, lane=lane) as remote:
            read(remote, BLOB)
            remote.close()
            with pytest.raises(Exception, match="closed"):
                remote.get(key(BLOB))
