"""A front of workers that ask for certificates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from kvclient import Larder
from kvclient.retry import Retry
from kvstore.core.errors import ConfigError, DeadlineError, TierUnavailableError
from kvstore.server.config import AuthConfig, TLSConfig
from kvstore.server.grpc_server import RpcServer
from kvworker.route.board import Board
from kvworker.route.command import RouteConfig
from kvworker.route.fronted import Fronted
from kvworker.serve.registration import registration
from tests.certificates import make_certificates
from tests.route.fakes import ANSWER, SERVER, TOKEN, Script


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates, and the tokens file that front and worker share."""
    made = tmp_path_factory.mktemp("certificates")
    make_certificates(made)
    (made / "tokens").write_text(f"alpha {TOKEN}\n")
    (made / "tokens").chmod(0o600)
    return made


@pytest.fixture
def worker(folder: Path) -> Iterator[RpcServer]:
    """Serve a worker that wants certificates of its callers."""
    tls = TLSConfig(str(folder / "named.pem"), str(folder / "named.key"), str(folder / "ca.pem"))
    server = RpcServer(replace(SERVER, tls=tls))
    server.start([registration(Script("a"))])
    yield server
    server.drain()


@contextmanager
def fronted(worker: RpcServer, folder: Path, **options: str) -> Iterator[Larder]:
    """Serve a front of it, in plain text on this machine, and yield a client that tries nothing again."""
    config = RouteConfig(workers=worker.address, server=SERVER, ca=str(folder / "ca.pem"), **options)
    board = Board(config.device_bytes)
    board.join("a", *config.addresses)
    front = Fronted(config.server, AuthConfig(), folder / "tokens", board, config.tls)
    with Larder(front.address, TOKEN, timeout_s=1.5, retry=Retry(1)) as larder:
        yield larder
    front.close()


def test_a_front_shows_its_certificate_to_workers_that_ask_for_one(worker: RpcServer, folder: Path) -> None:
    """And knows them by the name in theirs."""
    files = {"cert": str(folder / "client.pem"), "key": str(folder / "client.key")}
    with fronted(worker, folder, server_name="localhost", **files) as larder:
        assert [token.id for token in larder.ask(["1" * 8], "?").finish().tokens] == list(ANSWER)


@pytest.mark.parametrize("options", [{"server_name": "localhost"}, {"server_name": "another.example"}], ids=["none", "another name"])
def test_a_front_without_one_or_of_another_worker_gets_no_answer(worker: RpcServer, folder: Path, options: dict[str, str]) -> None:
    """No certificate of its own, and a worker that is not the one it was told of."""
    files = {"cert": str(folder / "client.pem"), "key": str(folder / "client.key")} if "another" in options["server_name"] else {}
    with fronted(worker, folder, **options, **files) as larder, pytest.raises((TierUnavailableError, DeadlineError)):
        larder.ask(["1" * 8], "?").finish()


@pytest.mark.parametrize("options", [{"cert": "c.pem"}, {"ca": "ca.pem", "key": "c.key"}, {"cert": "c.pem", "key": "c.key"}])
def test_half_a_certificate_or_one_in_plain_text_is_refused(options: dict[str, str]) -> None:
    """It says which settings belong together."""
    with pytest.raises(ConfigError, match="set together, and ca with them"):
        RouteConfig(workers="127.0.0.1:1", **options)


def test_a_front_does_not_begin_without_its_files(folder: Path) -> None:
    """Found out at its start rather than by its first caller."""
    config = RouteConfig(workers="127.0.0.1:1", ca=str(folder / "gone.pem"))
    with pytest.raises(ConfigError, match=r"gone\.pem"):
        Fronted(SERVER, AuthConfig(), folder / "tokens", Board(1), config.tls)
