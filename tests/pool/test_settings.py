"""How a pool is configured, and how many workers it has."""

from __future__ import annotations

import pytest

from kvstore.core.errors import ConfigError
from kvstore.server.config import ServerConfig
from kvworker.ray.scale import wanted_workers
from kvworker.ray.settings import RaySettings, beside_others

SCALING = RaySettings(workers=1, most_workers=4, waiting_per_worker=4)


@pytest.mark.parametrize(
    ("n_workers", "n_waiting", "wanted"),
    [(1, 4, 1), (1, 5, 2), (2, 8, 2), (2, 9, 3), (4, 100, 4), (3, 5, 3), (3, 4, 2), (2, 2, 1), (1, 0, 1), (2, 3, 2)],
)
def test_workers_follow_the_queue(n_workers: int, n_waiting: int, wanted: int) -> None:
    """One more above 4 a worker, one less where the others would have 2 each."""
    assert wanted_workers(SCALING, n_workers, n_waiting) == wanted


def test_no_load_makes_the_number_of_workers_swing() -> None:
    """What was added for a load is not taken away under the same load."""
    for n_waiting in range(20):
        n = 1
        for _ in range(10):
            n, before = wanted_workers(SCALING, n, n_waiting), n
        assert n == before


def test_without_a_most_the_number_stays() -> None:
    """Scaling is asked for."""
    assert wanted_workers(RaySettings(workers=2), 2, 1000) == 2


def test_custom_resources_are_named_amounts() -> None:
    """As Ray knows them."""
    assert RaySettings(resources="disk=1, rack-a=0.5").custom == {"disk": 1.0, "rack-a": 0.5}


@pytest.mark.parametrize("resources", ["disk", "disk=", "=1", "disk=0", "disk=-1", "disk=inf", "disk=nan"])
def test_what_is_no_list_of_resources_is_refused(resources: str) -> None:
    """With what one looks like."""
    with pytest.raises(ConfigError, match=r"name=1,other=0\.5"):
        RaySettings(resources=resources)


@pytest.mark.parametrize("change", [{"workers": 0}, {"most_workers": 1}, {"cpus": -1.0}, {"start_s": 0.0}, {"waiting_per_worker": 0.0}])
def test_what_can_not_be_is_refused(change: dict[str, float]) -> None:
    """Before anything starts."""
    with pytest.raises(ConfigError, match=r"ray\."):
        RaySettings(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize(("metrics", "own"), [("0.0.0.0:7430", "0.0.0.0:0"), ("127.0.0.1:0", "127.0.0.1:0"), ("", "")])
def test_actors_of_one_node_listen_beside_each_other(metrics: str, own: str) -> None:
    """A port that is configured could be had by one of them only."""
    configured = ServerConfig(address="127.0.0.1:7421", metrics_address=metrics, allow_plaintext=True)
    listening = beside_others(configured, "127.0.0.1")
    assert (listening.address, listening.metrics_address) == ("127.0.0.1:0", own)
