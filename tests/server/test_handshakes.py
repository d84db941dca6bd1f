"""Handshakes that fail inside gRPC: what can be known of them is in the audit log."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvclient.channel import ClientTLS
from kvclient.remote import RemoteStore
from kvclient.retry import Retry
from kvstore.core.errors import TierUnavailableError
from kvstore.server.access.audit import AuditLog
from kvstore.server.access.auth import TokenAuthenticator, known_tokens
from kvstore.server.access.handshakes import CALL, Handshakes, peers_of
from kvstore.server.config import LanesConfig, ServerConfig, TLSConfig
from kvstore.server.grpc_server import RpcServer
from kvstore.server.store_servicer import register_store
from tests.certificates import make_certificates
from tests.lanes.raw import until
from tests.server.audit_file import lines_of
from tests.server.chunks import make_service
from tests.server.serving import TOKENS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of the server's authority, and below "stranger" those of another."""
    made = tmp_path_factory.mktemp("certificates")
    make_certificates(made)
    (made / "stranger").mkdir()
    make_certificates(made / "stranger")
    return made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The audit file."""
    return tmp_path / "audit.jsonl"


@pytest.fixture
def server(folder: Path, file: Path) -> Iterator[RpcServer]:
    """A server that wants certificates of its clients."""
    tls = TLSConfig(str(folder / "server.pem"), str(folder / "server.key"), str(folder / "ca.pem"))
    service = make_service()
    running = RpcServer(ServerConfig(address="127.0.0.1:0", drain_s=0.5, tls=tls, lanes=LanesConfig(shm="off")), AuditLog(file))
    known = known_tokens(())
    running.start([register_store(service, TokenAuthenticator(lambda: known), running)])
    yield running
    running.drain()
    service.close()


def call(server: RpcServer, tls: ClientTLS | None) -> None:
    """Ask the server for something, with the given files."""
    store = RemoteStore(server.address, TOKENS["alpha"], tls, timeout_s=3, retry=Retry(attempts=1))
    try:
        store.stats()
    finally:
        store.close()


STRANGERS: dict[str, Callable[[Path], ClientTLS | None]] = {
    "plain text": lambda folder: None,
    "no certificate": lambda folder: ClientTLS(str(folder / "ca.pem")),
    "another authority": lambda folder: ClientTLS(
        str(folder / "ca.pem"), str(folder / "stranger" / "client.pem"), str(folder / "stranger" / "client.key")
    ),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_client_whose_certificate_is_not_accepted_is_refused_and_noted(server: RpcServer, folder: Path, file: Path, kind: str) -> None:
    """By where it came from; gRPC's own log says why."""
    with pytest.raises(TierUnavailableError):
        call(server, STRANGERS[kind](folder))
    until(lambda: bool(lines_of(file)))
    line = lines_of(file)[0]
    assert (line["event"], line["call"], line["outcome"]) == ("refused", CALL, "UNAUTHENTICATED")
    assert str(line["peer"]).startswith("ipv4:127.0.0.1:")


def test_a_client_with_a_certificate_is_known_by_its_calls(server: RpcServer, folder: Path, file: Path) -> None:
    """Its token is refused, which is another line, and its connection ends like any other."""
    tls = ClientTLS(str(folder / "ca.pem"), str(folder / "client.pem"), str(folder / "client.key"))
    with pytest.raises(Exception, match="not accepted"):
        call(server, tls)
    until(lambda: not peers_of(server.port))
    assert server.handshakes is not None
    server.handshakes.look()
    assert [line["call"] for line in lines_of(file)] == ["Stats"]


class Street:
    """Who is connected now, and a clock."""

    def __init__(self, file: Path) -> None:
        self.peers: list[str] = []
        self.now_s = 100.0
        self.n_listed = 0
        self.handshakes = Handshakes(AuditLog(file), self._connected, lambda: self.now_s)

    def _connected(self) -> list[str]:
        self.n_listed += 1
        return self.peers

    def connect(self, *peers: str) -> None:
        """Let peers come a moment later, each with a handshake."""
        self.now_s += 1.0
        for peer in peers:
            self.peers = [*self.peers, peer]
            self.handshakes.begin()

    def go(self, *peers: str) -> None:
        """Let peers go, and look a moment later."""
        self.peers = [peer for peer in self.peers if peer not in peers]
        self.now_s += 1.0
        self.handshakes.look()


@pytest.fixture
def street(file: Path) -> Street:
    """Nobody is there."""
    return Street(file)


def test_who_goes_without_a_call_is_noted_once_and_who_called_is_not(street: Street, file: Path) -> None:
    """In any order."""
    street.connect("a:1")
    street.handshakes.called("a:1")
    street.go()
    street.connect("b:1")
    street.go("a:1", "b:1")
    street.go()
    assert [line["peer"] for line in lines_of(file)] == ["b:1"]


def test_who_is_silent_is_noted_when_it_goes(street: Street, file: Path) -> None:
    """It may call yet."""
    street.connect("a:1")
    street.go()
    assert (lines_of(file), street.handshakes.is_watching) == ([], True)
    street.go("a:1")
    assert len(lines_of(file)) == 1


def test_a_flood_is_not_answered_with_a_reading_each(street: Street, file: Path) -> None:
    """Reading takes time for each connection; who calls meanwhile is remembered."""
    street.connect(*(f"a:{i}" for i in range(100)))
    assert street.n_listed == 1
    street.handshakes.called("a:50")
    street.go()
    street.go(*(f"a:{i}" for i in range(100)))
    assert len(lines_of(file)) == 99


def test_nothing_is_looked_at_while_everybody_has_called(street: Street) -> None:
    """A quiet server reads no tables."""
    street.connect("a:1")
    street.handshakes.called("a:1")
    assert not street.handshakes.is_watching


@pytest.mark.parametrize(
    ("family", "host", "spelled"), [(socket.AF_INET, "127.0.0.1", "ipv4:127.0.0.1:{}"), (socket.AF_INET6, "::1", "ipv6:%5B::1%5D:{}")]
)
def test_the_system_says_who_is_connected(family: socket.AddressFamily, host: str, spelled: str) -> None:
    """Spelled as gRPC does; who hung up is not connected."""
    with socket.create_server((host, 0), family=family) as listening:
        port = listening.getsockname()[1]
        with socket.create_connection((host, port)) as there:
            here, _ = listening.accept()
            assert peers_of(port) == [spelled.format(there.getsockname()[1])]
        here.close()
        assert peers_of(port) == []


def test_a_system_without_tables_knows_nobody(tmp_path: Path) -> None:
    """And nothing fails."""
    assert peers_of(1, [tmp_path / "tcp"]) == []


def test_a_mapped_address_is_that_of_its_client(tmp_path: Path) -> None:
    """As a server has it that listens for both families."""
    table = tmp_path / "tcp6"
    mine, theirs = (f"0000000000000000FFFF0000{place}" for place in ("0100007F:1CFC", "070200C0:D431"))
    rows = [f"   {n}: {mine} {theirs} {state} 00000000:00000000 00:00000000 00000000 0 0" for n, state in enumerate(("01", "06"))]
    table.write_text("\n".join(["  sl  local_address remote_address st", *rows, ""]))
    assert peers_of(7420, [table]) == ["ipv4:192.0.2.7:54321"]
    assert peers_of(7421, [table]) == []
