"""Certificates that change while a server runs: gRPC, and the tcp lane."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvclient.channel import ClientTLS
from kvclient.lanes.choice import LaneName
from kvclient.lanes.tcp import TcpLane, TcpSettings
from kvclient.remote import RemoteStore
from kvclient.retry import Retry
from kvstore.core.api import PutNote
from kvstore.core.errors import ConfigError, TierUnavailableError
from kvstore.core.pool import BufferPool
from kvstore.server.access.auth import Identity
from kvstore.server.access.certificates import Certificates
from kvstore.server.config import ServerConfig, TLSConfig
from kvstore.server.grpc_server import RpcServer
from tests.certificates import make_certificates
from tests.lanes.raw import doors_of, soon, until
from tests.server.chunks import key, make_blob, make_service
from tests.server.serving import TOKENS, serving

BLOB = make_blob()


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two authorities with their certificates."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("old", "new")}
    for folder in folders.values():
        make_certificates(folder)
    return folders


@pytest.fixture
def tls(authorities: dict[str, Path], tmp_path: Path) -> TLSConfig:
    """The files of a server, which are the old authority's."""
    use(authorities["old"], tmp_path)
    return TLSConfig(str(tmp_path / "server.pem"), str(tmp_path / "server.key"), str(tmp_path / "ca.pem"))


@pytest.fixture
def server(tls: TLSConfig) -> Iterator[RpcServer]:
    """A server that wants certificates of its clients, with a chunk of tenant alpha."""
    service = make_service()
    service.bind("alpha").put(BLOB, PutNote())
    with serving(service, ServerConfig(address="127.0.0.1:0", drain_s=0.5, tls=tls)) as running:
        yield running


def use(authority: Path, folder: Path, *names: str) -> None:
    """Put an authority's files where the server has its own."""
    for name in names or ("ca.pem", "server.pem", "server.key"):
        shutil.copy(authority / name, folder / name)


def dial(server: RpcServer, authority: Path, lane: LaneName) -> RemoteStore:
    """Connect as a client of an authority."""
    tls = ClientTLS(str(authority / "ca.pem"), str(authority / "client.pem"), str(authority / "client.key"))
    return RemoteStore(server.address, TOKENS["alpha"], tls, timeout_s=3, retry=Retry(attempts=1), lane=lane)


def test_new_connections_get_the_new_certificate_and_open_ones_live_on(
    server: RpcServer, authorities: dict[str, Path], tmp_path: Path
) -> None:
    """On both ways, without a restart."""
    lanes: tuple[LaneName, ...] = ("grpc", "tcp")
    before = [dial(server, authorities["old"], lane) for lane in lanes]
    for store in before:
        assert store.get(key(BLOB)) is not None
    use(authorities["new"], tmp_path)
    after = [dial(server, authorities["new"], lane) for lane in lanes]
    for store in (*after, *before):
        assert store.get(key(BLOB)) is not None
        store.close()


@pytest.mark.parametrize("lane", ["grpc", "tcp"])
def test_a_client_of_the_authority_that_was_replaced_is_refused(
    server: RpcServer, authorities: dict[str, Path], tmp_path: Path, lane: LaneName
) -> None:
    """Taking an authority away is how its certificates are revoked."""
    use(authorities["new"], tmp_path)
    late = dial(server, authorities["old"], lane)
    with pytest.raises(TierUnavailableError):
        late.get(key(BLOB))
    late.close()


def test_half_a_replacement_changes_nothing(tls: TLSConfig, authorities: dict[str, Path], tmp_path: Path) -> None:
    """A certificate comes before its key, or the other way round."""
    certificates = Certificates(tls)
    before = certificates.context()
    use(authorities["new"], tmp_path, "server.pem")
    assert certificates.context() is before
    use(authorities["new"], tmp_path, "server.key")
    assert certificates.context() is not before


def test_files_that_are_gone_change_nothing(tls: TLSConfig) -> None:
    """A mount that is not there for a moment."""
    certificates = Certificates(tls)
    before = certificates.context()
    Path(tls.cert).unlink()
    assert certificates.context() is before


@pytest.mark.parametrize("spoilt", ["server.pem", "server.key", "ca.pem"])
def test_files_that_are_spoilt_at_the_start_are_refused(tls: TLSConfig, tmp_path: Path, spoilt: str) -> None:
    """Before anything is served."""
    (tmp_path / spoilt).write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(ConfigError, match=r"server\.tls"):
        Certificates(tls)


def test_a_stranger_of_the_lane_leaves_an_audit_line(
    server: RpcServer, authorities: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Its handshakes are our own; for gRPC's see test_handshakes.py."""
    stranger = ClientTLS(str(authorities["old"] / "ca.pem"))
    offered = doors_of(server).open_lane(Identity("alpha"))
    lane = TcpLane(TcpSettings("127.0.0.1", offered.tcp_port, tls=stranger.context()), lambda _: offered.ticket, BufferPool(0), 1 << 20)
    with caplog.at_level("INFO", "larder.audit"):
        with pytest.raises(TierUnavailableError):
            lane.get([key(BLOB)], soon())
        until(lambda: "the TLS handshake failed" in caplog.text)
    lane.close()
    assert "UNAUTHENTICATED" in caplog.text
