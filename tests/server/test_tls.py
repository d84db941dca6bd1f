"""TLS, and certificates of clients."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kvclient.channel import ClientTLS
from kvclient.retry import Retry
from kvclient.transport import GrpcTransport

from kvstore.core.api import PutNote
from kvstore.core.errors import ConfigError, TierUnavailableError
from kvstore.server.config import ServerConfig, TLSConfig
from kvstore.server.grpc_server import RpcServer
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


def dial(server: RpcServer, tls: ClientTLS | None) -> GrpcTransport:
    """Connect with the given files."""
    return GrpcTransport(server.address, TOKENS["alpha"], tls, timeout_s=3, retry=Retry(attempts=1))


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
    with pytest.raises(ConfigError, match=r"server\.tls\.key"):
        RpcServer(ServerConfig(address="127.0.0.1:0", tls=tls)).start([])


def make_certificates(folder: Path) -> None:
    """Write an authority, and certificates of it for a server called localhost and for a client."""

    def openssl(*args: str) -> None:
        subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)

    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=test authority")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names"]
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signing)
