"""How `larder worker --ray` finds Ray, and how its front speaks to actors."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from kvclient.channel import ClientTLS
from kvstore.server.config import ServerConfig, TLSConfig
from kvworker.ray.command import LOCAL, connected, tls_to_actors
from kvworker.ray.settings import RaySettings
from kvworker.serve.config import WorkerConfig

RAY = RaySettings(ca="ca.pem", server_name="worker.test")


def test_actors_that_ask_for_certificates_are_shown_the_servers_own() -> None:
    """They would let the front in as little as a stranger."""
    asking = WorkerConfig(server=ServerConfig(tls=TLSConfig("own.pem", "own.key", "clients.pem")), ray=RAY)
    assert tls_to_actors(asking) == ClientTLS("ca.pem", "own.pem", "own.key", "worker.test")


def test_a_key_is_shown_to_nobody_who_does_not_ask() -> None:
    """TLS where actors serve it, and plain text where they serve that."""
    assert tls_to_actors(WorkerConfig(server=ServerConfig(tls=TLSConfig("own.pem", "own.key")), ray=RAY)) == ClientTLS(
        "ca.pem", "", "", "worker.test"
    )
    assert tls_to_actors(WorkerConfig(ray=RAY)) is None


@pytest.mark.parametrize(("address", "asked"), [(LOCAL, "local"), ("auto", "auto"), ("192.0.2.7:6379", "192.0.2.7:6379")])
def test_a_ray_of_its_own_joins_no_cluster_that_runs_beside_it(monkeypatch: pytest.MonkeyPatch, address: str, asked: str) -> None:
    """Without an address, Ray would take the one that it finds on the machine."""
    calls: list[object] = []
    ray = SimpleNamespace(init=lambda address, **_: calls.append(address), shutdown=lambda: calls.append("shut down"))
    monkeypatch.setitem(sys.modules, "ray", ray)
    with connected(address):
        assert calls == [asked]
    assert calls == [asked, "shut down"]
