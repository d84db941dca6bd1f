"""The services for one machine: settings that the programs know, and nothing reachable from outside."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from kvstore.server.config import ENV_PREFIX as STORE_PREFIX
from kvstore.server.config import StoreConfig, load
from kvworker.serve.config import ENV_PREFIX as WORKER_PREFIX
from kvworker.serve.config import WorkerConfig
from tests.architecture.source import ROOT

SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]


def configured(name: str) -> StoreConfig | WorkerConfig:
    """Return what a service's variables mean to its program."""
    kind, prefix = {"store": (StoreConfig, STORE_PREFIX), "worker": (WorkerConfig, WORKER_PREFIX)}[name]
    return load(kind, (prefix,), None, SERVICES[name]["environment"])


@pytest.mark.parametrize("name", ["store", "worker"])
def test_every_variable_is_one_that_the_program_reads(name: str) -> None:
    """The loader refuses an unknown key, and passes over a variable with another prefix."""
    prefix = f"LARDER_{name.upper()}__"
    assert all(variable.startswith(prefix) for variable in SERVICES[name]["environment"])
    assert configured(name).server.allow_plaintext


def test_only_the_worker_is_published_and_to_this_machine_only() -> None:
    """Everything here is plain text."""
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"worker": ["127.0.0.1:7421:7421"]}


def test_the_worker_dials_the_store_where_it_listens() -> None:
    """By the service's name."""
    worker, store = configured("worker"), configured("store")
    assert isinstance(worker, WorkerConfig)
    assert worker.store.address == f"store:{store.server.address.rpartition(':')[2]}"


@pytest.mark.parametrize("name", ["store", "worker"])
def test_a_service_has_time_to_drain_and_flush(name: str) -> None:
    """The store takes up to 42 s after its drain, the worker is given 60 s for what is queued."""
    after_s = {"store": 42, "worker": 60}[name]
    assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) >= configured(name).server.drain_s + after_s


@pytest.mark.parametrize("name", list(SERVICES))
def test_services_are_confined(name: str) -> None:
    """As in Kubernetes: no rights, and no writing but into volumes."""
    assert SERVICES[name]["read_only"] is True
    assert SERVICES[name]["cap_drop"] == ["ALL"]
    assert SERVICES[name]["security_opt"] == ["no-new-privileges:true"]
