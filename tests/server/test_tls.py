"""TLS, and certificates of clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvclient.channel import ClientTLS
from kvclient.remote import RemoteStore
from kvclient.retry import Retry
from kvstore.core.api import PutNote
from kvstore.core.errors import ConfigError, TierUnavailableError
from kvstore.server.config import ServerConfig, TLSConfig
from kvstore.server.grpc_server import RpcServer
from tests.certificates import make_certificates
from tests.server.chunks import key, make_blob, make_service
from tests.server.serving import TOKENS, serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates."""
    made = tmp_path_factory.mktemp("certificates")
    make_certificates(made)
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RpcServer]:
    """A server that wants certificates of its clients."""
    tls = TLSConfig(str(folder / "server.pem"), str(folder / "server.key"), str(folder / "ca.pem"))
    with serving(make_service(), ServerConfig(address="127.0.0.1:0", drain_s=0.5, tls=tls)) as running:
        yield running


def dial(server: RpcServer, tls: ClientTLS | None) -> RemoteStore:
    """Connect with the given files."""
    return RemoteStore(server.address, TOKENS["alpha"], tls, timeout_s=3, retry=Retry(attempts=1))


def test_a_client_with_a_certificate_of_the_authority_is_served(server: RpcServer, folder: Path) -> None:
    """Both sides know whom they talk to."""
    transport = dial(server, ClientTLS(str(folder / "ca.pem"), str(folder / "client.pem"), str(folder / "client.key")))
    blob = make_blob()
    transport.put(blob, PutNote())
    assert transport.get(key(blob)) is not None
    transport.close()


@pytest.mark.parametrize("kind", ["plain text", "no certificate", "unknown authority"])
def test_any_other_client_is_not_served(server: RpcServer, folder: Path, kind: str) -> None:
    """Whatever its token."""
    authorities = {"no certificate": "ca.pem", "unknown authority": "client.pem"}
    transport = dial(server, ClientTLS(str(folder / authorities[kind])) if kind in authorities else None)
    with pytest.raises(TierUnavailableError):
        transport.stats()
    transport.close()


def test_a_missing_certificate_file_is_refused_by_its_setting(tmp_path: Path) -> None:
    """Before anything is served."""
    tls = TLSConfig(str(tmp_path / "absent.pem"), str(tmp_path / "absent.key"))
    with pytest.raises(ConfigError, match=r"server\.tls\.cert"):
        RpcServer(ServerConfig(address="127.0.0.1:0", tls=tls)).start([])
