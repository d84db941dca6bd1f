"""TLS: both clients and the command line, with an authority of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from kvclient import ClientTLS, Retry
from kvclient.cli.main import main
from kvstore.core.errors import ConfigError, KVError
from tests.certificates import make_certificates
from tests.client.fake_server import FakeServer
from tests.client.twins import Twin

Connect = Callable[..., Twin]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a certificate for localhost and its authority."""
    made = tmp_path_factory.mktemp("certificate")
    make_certificates(made)
    return made


@pytest.fixture
def secure(folder: Path) -> Iterator[FakeServer]:
    """Serve with that certificate."""
    pair = ((folder / "server.key").read_bytes(), (folder / "server.pem").read_bytes())
    fake = FakeServer(grpc.ssl_server_credentials([pair]))
    fake.start()
    yield fake
    fake.stop()


def test_a_client_that_trusts_the_authority_is_served(secure: FakeServer, connect: Connect, folder: Path) -> None:
    """The name in the certificate may differ from the address."""
    twin = connect(secure, tls=ClientTLS(ca=str(folder / "ca.pem"), server_name="localhost"))
    assert twin.do(twin.larder, "info").model == "tiny"


def test_chunks_come_from_stores_behind_one_name_whose_certificates_hold_that_name(connect: Connect, folder: Path) -> None:
    """Their addresses are in no certificate."""
    pair = ((folder / "named.key").read_bytes(), (folder / "named.pem").read_bytes())
    fake = FakeServer(grpc.ssl_server_credentials([pair]))
    fake.start()
    fake.store_address = f"dns:localhost:{fake.port}"
    ref, _ = fake.add_passage("a.txt", 0, "some words")
    twin = connect(Named(f"localhost:{fake.port}"), tls=ClientTLS(ca=str(folder / "ca.pem")))
    (found,) = twin.do(twin.larder, "chunks", [ref.id])
    fake.stop()
    assert found.blob is not None


@dataclass(frozen=True)
class Named:
    """A server by another address, for `connect`."""

    address: str


@pytest.mark.parametrize("tls", [None, ClientTLS(server_name="localhost")], ids=["plain text", "another authority"])
def test_a_client_that_does_not_is_refused_with_a_typed_error(secure: FakeServer, connect: Connect, tls: ClientTLS | None) -> None:
    """Nothing is sent to a server that cannot prove its name."""
    twin = connect(secure, tls=tls, timeout_s=3.0, retry=Retry(attempts=1))
    with pytest.raises(KVError):
        twin.do(twin.larder, "info")
    assert not secure.calls


def test_a_missing_authority_is_refused_by_its_path(connect: Connect, server: FakeServer) -> None:
    """Before anything is sent."""
    twin = connect(server, tls=ClientTLS(ca="absent.pem"))
    with pytest.raises(ConfigError, match=r"absent\.pem: No such file"):
        twin.do(twin.larder, "info")


def test_an_authority_that_is_not_pem_is_refused(connect: Connect, server: FakeServer, tmp_path: Path) -> None:
    """gRPC would say that it can't connect."""
    (tmp_path / "ca.pem").write_text("not a certificate")
    twin = connect(server, tls=ClientTLS(ca=str(tmp_path / "ca.pem")))
    with pytest.raises(ConfigError, match="files for TLS can't be used"):
        twin.do(twin.larder, "info")


def test_the_command_line_takes_the_authority(
    secure: FakeServer, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an option, or from the environment."""
    address = f"localhost:{secure.port}"
    assert main(["ping", "--json", "--address", address, "--ca", str(folder / "ca.pem")]) == 0
    monkeypatch.setenv("LARDER_CA", str(folder / "ca.pem"))
    assert main(["stats", "--json", "--address", address]) == 0
    assert '"redis"' in capsys.readouterr().out


@pytest.mark.parametrize(("name", "code"), [("localhost", 0), ("other.example", 4)])
def test_the_command_line_takes_the_name_in_the_certificate(secure: FakeServer, folder: Path, name: str, code: int) -> None:
    """A probe inside a pod dials 127.0.0.1, and the certificate names the service."""
    connection = ["--address", secure.address, "--token", "t" * 16, "--ca", str(folder / "ca.pem"), "--timeout", "2"]
    assert main(["ping", *connection, "--server-name", name, "--json"]) == code


@pytest.fixture
def mutual(folder: Path) -> Iterator[FakeServer]:
    """Serve only clients with a certificate of the authority."""
    pair = ((folder / "server.key").read_bytes(), (folder / "server.pem").read_bytes())
    fake = FakeServer(grpc.ssl_server_credentials([pair], (folder / "ca.pem").read_bytes(), require_client_auth=True))
    fake.start()
    yield fake
    fake.stop()


def test_the_command_line_shows_a_certificate(mutual: FakeServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As options, or from the environment; without one it is not served."""
    connection = ["--address", f"localhost:{mutual.port}", "--ca", str(folder / "ca.pem"), "--timeout", "3", "--json"]
    own = ["--cert", str(folder / "client.pem"), "--key", str(folder / "client.key")]
    assert (main(["ping", *connection, *own]), main(["ping", *connection])) == (0, 4)
    monkeypatch.setenv("LARDER_CERT", str(folder / "client.pem"))
    monkeypatch.setenv("LARDER_KEY", str(folder / "client.key"))
    assert main(["ping", *connection]) == 0


def test_a_certificate_without_tls_is_wrong_usage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Plain text would be sent to whoever listens."""
    words = ["ping", "--token", "t" * 16, "--cert", str(folder / "client.pem"), "--key", str(folder / "client.key")]
    assert main(words) == 2
    assert "give --ca" in capsys.readouterr().err
