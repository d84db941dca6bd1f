"""The tcp lane under TLS: whenever the server has it, with the same certificates, and never without."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kvclient.channel import ClientTLS
from kvclient.lanes.frames import FRAME, Kind, pack_frame, parse_error, parse_frame
from kvclient.lanes.socket_frames import SocketFrames
from kvclient.lanes.tcp import TcpLane, TcpSettings
from kvclient.remote import RemoteStore
from kvclient.retry import Retry
from kvstore.core.api import PutNote
from kvstore.core.errors import TierUnavailableError
from kvstore.core.pool import BufferPool
from kvstore.server.access.auth import Identity
from kvstore.server.config import LanesConfig, ServerConfig, TLSConfig
from kvstore.server.grpc_server import RpcServer
from tests.certificates import make_certificates
from tests.lanes.raw import PATIENCE_S, doors_of, soon
from tests.server.chunks import key, make_blob, make_service
from tests.server.serving import TOKENS, serving
from tests.server.ways import parts_of, read

BLOB = make_blob(part_nbytes=700_000)
SMALL = make_blob(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates."""
    made = tmp_path_factory.mktemp("certificates")
    make_certificates(made)
    return made


@pytest.fixture
def server(folder: Path) -> Iterator[RpcServer]:
    """A server that wants certificates of its clients, on tcp and gRPC."""
    tls = TLSConfig(str(folder / "server.pem"), str(folder / "server.key"), str(folder / "ca.pem"))
    config = ServerConfig(address="127.0.0.1:0", drain_s=0.5, tls=tls, lanes=LanesConfig(shm="off"))
    with serving(make_service(), config) as running:
        yield running


@pytest.fixture
def tls(folder: Path) -> ClientTLS:
    """What an honest client has."""
    return ClientTLS(str(folder / "ca.pem"), str(folder / "client.pem"), str(folder / "client.key"))


def lane_port(server: RpcServer) -> int:
    """Return the port of the tcp lane."""
    return doors_of(server).open_lane(Identity("alpha")).tcp_port


@pytest.mark.parametrize("blob", [SMALL, BLOB], ids=["one record", "many records"])
def test_chunks_travel_by_tcp_under_tls(server: RpcServer, tls: ClientTLS, blob: bytearray) -> None:
    """Small and large, both ways."""
    remote = RemoteStore(server.address, TOKENS["alpha"], tls, retry=Retry(attempts=1))
    assert remote.put(blob, PutNote()).stored
    assert read(remote, blob) == parts_of(blob)
    assert remote.lane() == "tcp"
    remote.close()


def test_nothing_of_a_chunk_is_on_the_wire_in_the_clear(server: RpcServer, tls: ClientTLS) -> None:
    """Neither the ticket nor the bytes."""
    ticket = doors_of(server).open_lane(Identity("alpha")).ticket
    seen = b""
    context = tls.context()
    inside, outside = ssl.MemoryBIO(), ssl.MemoryBIO()
    wrapped = context.wrap_bio(inside, outside, server_hostname="127.0.0.1")
    with socket.create_connection(("127.0.0.1", lane_port(server)), PATIENCE_S) as wire:
        seen += finish_handshake(wrapped, inside, outside, wire)
        wrapped.write(pack_frame(Kind.HELLO, len(ticket), 0) + ticket)
        sent = outside.read()
        wire.sendall(sent)
        seen += sent
        inside.write(wire.recv(1 << 16))
        kind, _, _ = parse_frame(read_some(wrapped, inside, wire))
    assert kind is Kind.WELCOME
    assert ticket not in seen
    assert b"KVL1" not in seen


def finish_handshake(wrapped: ssl.SSLObject, inside: ssl.MemoryBIO, outside: ssl.MemoryBIO, wire: socket.socket) -> bytes:
    """Shake hands and return what was sent."""
    sent = b""
    while True:
        try:
            wrapped.do_handshake()
            is_done = True
        except ssl.SSLWantReadError:
            is_done = False
        out = outside.read()
        wire.sendall(out)
        sent += out
        if is_done:
            return sent
        inside.write(wire.recv(1 << 16))


def read_some(wrapped: ssl.SSLObject, inside: ssl.MemoryBIO, wire: socket.socket) -> bytes:
    """Return the next bytes in the clear."""
    while True:
        try:
            return wrapped.read(FRAME.size)
        except ssl.SSLWantReadError:
            inside.write(wire.recv(1 << 16))


def test_a_client_in_plain_text_is_refused(server: RpcServer) -> None:
    """Even with a ticket: it is never asked for."""
    offered = doors_of(server).open_lane(Identity("alpha"))
    with socket.create_connection(("127.0.0.1", offered.tcp_port), PATIENCE_S) as plain:
        plain.sendall(pack_frame(Kind.HELLO, len(offered.ticket), 0) + offered.ticket)
        answered = b""
        with suppress(ConnectionError):
            while more := plain.recv(1 << 16):
                answered += more
    assert b"KVL1" not in answered
    assert doors_of(server)._tickets.redeem(offered.ticket).tenant == "alpha"


def strangers(folder: Path, tmp_path: Path) -> dict[str, ClientTLS]:
    """Return clients that must not be served: no certificate, and one of another authority."""
    make_certificates(tmp_path)
    return {
        "no certificate": ClientTLS(str(folder / "ca.pem")),
        "another authority": ClientTLS(str(folder / "ca.pem"), str(tmp_path / "client.pem"), str(tmp_path / "client.key")),
        "a server of another authority": ClientTLS(str(tmp_path / "ca.pem"), str(folder / "client.pem"), str(folder / "client.key")),
        "another name": ClientTLS(str(folder / "ca.pem"), str(folder / "client.pem"), str(folder / "client.key"), "elsewhere.example"),
    }


@pytest.mark.parametrize("who", ["no certificate", "another authority", "a server of another authority", "another name"])
def test_a_stranger_gets_no_connection_of_the_lane(server: RpcServer, folder: Path, tmp_path: Path, who: str) -> None:
    """Both sides check whom they talk to, on the lane as on the channel."""
    stranger = strangers(folder, tmp_path)[who]
    offered = doors_of(server).open_lane(Identity("alpha"))
    settings = TcpSettings("127.0.0.1", offered.tcp_port, tls=stranger.context(), server_name=stranger.server_name)
    lane = TcpLane(settings, lambda deadline: offered.ticket, BufferPool(0), 1 << 20)
    with pytest.raises(TierUnavailableError):
        lane.get([key(SMALL)], soon())
    lane.close()


def test_a_client_that_shakes_no_hands_is_dropped(server: RpcServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without TLS costs a thread for as long as a greeting may take."""
    monkeypatch.setattr("kvstore.server.lanes.listener.GREETING_S", 0.2)
    with socket.create_connection(("127.0.0.1", lane_port(server)), PATIENCE_S) as silent, suppress(ConnectionError):
        assert silent.recv(1) == b""


def test_a_forged_ticket_is_refused_under_tls_too(server: RpcServer, tls: ClientTLS) -> None:
    """A certificate is no identity of a tenant."""
    raw = socket.create_connection(("127.0.0.1", lane_port(server)), PATIENCE_S)
    frames = SocketFrames(tls.context().wrap_socket(raw, server_hostname="127.0.0.1"), "server")
    frames.send(Kind.HELLO, bytes(32), soon())
    kind, head, _ = frames.receive(soon())
    frames.close()
    assert (kind, type(parse_error(head)).__name__) == (Kind.ERROR, "AuthError")
