"""How a front is configured, and what is refused."""

from __future__ import annotations

import pytest

from kvstore.core.errors import ConfigError
from kvstore.server.config import ServerConfig
from kvworker.route.command import RouteConfig


@pytest.mark.parametrize("workers", ["worker:7421", "127.0.0.1:7421, 192.0.2.7:7421"])
def test_workers_in_plain_text_on_other_machines_are_refused(workers: str) -> None:
    """Callers' tokens would cross the network."""
    with pytest.raises(ConfigError, match="in plain text"):
        RouteConfig(workers=workers)
    assert RouteConfig(workers=workers, ca="ca.pem").plain_to_others == ""
    assert RouteConfig(workers=workers, server=ServerConfig(allow_plaintext=True)).plain_to_others


def test_workers_of_this_machine_need_no_certificate() -> None:
    """Nothing leaves it."""
    assert RouteConfig(workers="127.0.0.1:7421,[::1]:7421,localhost:1").addresses == ["127.0.0.1:7421", "[::1]:7421", "localhost:1"]


@pytest.mark.parametrize("workers", ["", " , "])
def test_a_front_of_nobody_is_refused(workers: str) -> None:
    """With how to name a worker."""
    with pytest.raises(ConfigError, match="--worker HOST:PORT"):
        RouteConfig(workers=workers).addresses  # noqa: B018 (raises)


@pytest.mark.parametrize("workers", ["worker", "127.0.0.1:0", "127.0.0.1:7421,:7422"])
def test_a_worker_without_an_address_is_refused(workers: str) -> None:
    """Before callers wait for it."""
    with pytest.raises(ConfigError, match="is no address: write host:port"):
        RouteConfig(workers=workers, ca="ca.pem")
