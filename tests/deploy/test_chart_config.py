"""The chart's configuration files are those of the programs: the same keys, read by the same loader."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml

from kvclient.channel import ClientTLS
from kvstore.core.units import parse_nbytes
from kvstore.server.config import StoreConfig, load
from kvworker.ray.command import tls_to_actors
from kvworker.serve.config import WorkerConfig
from tests.deploy.rendering import CHART, NAMESPACE, RELEASE, Rendered, render, variant

CONFIGS: dict[str, type[StoreConfig] | type[WorkerConfig]] = {"store": StoreConfig, "worker": WorkerConfig}
# What the chart sets itself, or what means nothing in a pod.
NOT_OFFERED = {
    "store": {
        "data_dir",
        "auth",
        "encryption",
        "server.address",
        "server.allow_plaintext",
        "server.metrics_address",
        "server.log_format",
        "server.tls",
        "server.lanes.shm",
        "server.lanes.shm_directory",
        "server.lanes.tcp_port",
        "tiers.disk.directory",
        "tiers.redis.url",
    },
    "worker": {
        "data_dir",
        "auth",
        "server.address",
        "server.allow_plaintext",
        "server.metrics_address",
        "server.log_format",
        "server.tls",
        "server.lanes",
        "store.address",
        "store.ca",
        "store.cert",
        "store.key",
        "store.server_name",
        "worker.catalog_url",
        "ray.host",
        "ray.ca",
        "ray.server_name",
    },
}
MIB = 1 << 20


def read(rendered: Rendered, part: str, folder: Path) -> Any:
    """Load a part's configuration as the program does."""
    file = folder / f"{part}.toml"
    file.write_text(rendered.config_text(part))
    return load(CONFIGS[part], (), file, {})


def test_the_programs_read_what_the_chart_writes(rendered: Rendered, tmp_path: Path) -> None:
    """Their loader refuses an unknown key and a value of another type."""
    for part in rendered.parts:
        assert read(rendered, part, tmp_path).data_dir == "/var/lib/larder"


@pytest.mark.parametrize("part", CONFIGS)
def test_the_schema_offers_the_keys_that_the_program_knows(part: str) -> None:
    """A key that was added, renamed or removed is to be so in values.schema.json too, or named in NOT_OFFERED with a reason."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert _offered(schema["properties"][part]["properties"]["config"]) == _known(CONFIGS[part]) - _below(
        NOT_OFFERED[part], _known(CONFIGS[part])
    )


def test_values_arrive_as_they_were_written(tmp_path: Path) -> None:
    """Whole numbers, fractions, text and booleans each have a spelling of their own in TOML."""
    values = {
        "store": {
            "config": {"server": {"drain_s": 12.5, "max_workers": 7, "lanes": {"tcp": False}}, "tiers": {"memory": {"capacity": 3 << 40}}}
        },
        "worker": {"config": {"worker": {"question_template": 'A "quoted" <line>\n{question}', "quality_budget": 1e-05}}},
    }
    release = render(values)
    store, worker = (read(release, part, tmp_path) for part in ("store", "worker"))
    assert (store.server.drain_s, store.server.max_workers, store.server.lanes.tcp) == (12.5, 7, False)
    assert store.tiers.memory.capacity == 3 << 40
    assert worker.worker.question_template == 'A "quoted" <line>\n{question}'
    assert worker.worker.quality_budget == 1e-05


def test_the_tls_files_are_where_the_secret_is_mounted(tmp_path: Path) -> None:
    """By the key names of a Secret of type kubernetes.io/tls."""
    release = variant("everything")
    mounts = {mount["name"]: mount["mountPath"] for mount in release.container("worker")["volumeMounts"]}
    worker = read(release, "worker", tmp_path)
    assert worker.server.tls.cert == f"{mounts['tls']}/tls.crt"
    assert worker.server.tls.key == f"{mounts['tls']}/tls.key"
    assert worker.store.ca == f"{mounts['tls']}/ca.crt"


def test_who_may_call_and_what_encrypts_reach_the_programs(tmp_path: Path) -> None:
    """Each as a file that is mounted, or copied to where only the program reads it."""
    release = variant("everything")
    store, worker = (read(release, part, tmp_path) for part in ("store", "worker"))
    for part, config in (("store", store), ("worker", worker)):
        mounts = {mount["name"]: mount["mountPath"] for mount in release.container(part)["volumeMounts"]}
        assert config.auth.jwks_file == f"{mounts['jwks']}/jwks.json"
        assert (config.auth.issuer, config.auth.audience) == ("https://issuer.example.test", "larder")
        assert config.server.tls.client_ca == f"{mounts['tls']}/ca.crt"
    assert store.encryption.keys_file == "/run/larder/keys"
    assert "/etc/larder/auth/keys" in release.pod("store")["initContainers"][0]["command"]
    assert "/etc/larder/auth/keys" not in release.pod("worker")["initContainers"][0]["command"]
    assert (worker.store.cert, worker.store.key) == (worker.server.tls.cert, worker.server.tls.key)


def test_actors_of_a_pod_listen_within_it_and_are_known_by_its_certificate(tmp_path: Path) -> None:
    """They serve under the pod's own TLS; the front dials them at 127.0.0.1."""
    release = variant("on ray")
    worker = read(release, "worker", tmp_path)
    assert (worker.ray.workers, worker.ray.waiting_per_worker, worker.ray.host) == (4, 2.5, "127.0.0.1")
    assert tls_to_actors(worker) == ClientTLS(
        "/etc/larder/tls/ca.crt", worker.server.tls.cert, worker.server.tls.key, f"{RELEASE}-worker.{NAMESPACE}.svc"
    )


def test_an_actor_gets_a_gpu_where_the_pod_has_some_unless_told_otherwise(tmp_path: Path) -> None:
    """Ray hides GPUs that an actor did not ask for."""
    asked = {"worker": {"ray": {"enabled": True}, "gpu": {"count": 1}, "config": {"ray": {"gpus": 0.5}}}}
    assert read(variant("on ray"), "worker", tmp_path).ray.gpus == 1.0
    assert read(render(asked), "worker", tmp_path).ray.gpus == 0.5


def test_plain_text_to_redis_is_allowed_by_name_only(tmp_path: Path) -> None:
    """The URL is in a Secret, which the chart cannot read."""
    for name, is_allowed in (("defaults", False), ("several", False), ("on ray", True)):
        assert {read(variant(name), part, tmp_path).server.allow_plaintext for part in ("store", "worker")} == {is_allowed}


def test_by_default_the_store_fits_its_memory_and_its_disk_the_volume(tmp_path: Path) -> None:
    """Tier, transfers, two pools and the queue of the one slower tier, and 256 MiB for Python. Files take whole blocks: a tenth more."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())["store"]
    config = read(variant("defaults"), "store", tmp_path)
    needed = config.tiers.memory.capacity + config.server.max_inflight_bytes + 3 * config.tiers.write_queue + 256 * MIB
    assert needed <= parse_nbytes(values["resources"]["limits"]["memory"] + "B")
    assert config.tiers.disk.capacity * 1.1 <= parse_nbytes(values["persistence"]["size"] + "B")


def _known(kind: Any, path: str = "") -> set[str]:
    """Return the dotted keys of a configuration."""
    hints = get_type_hints(kind)
    found: set[str] = set()
    for each in fields(kind):
        name = f"{path}{each.name}"
        found |= _known(hints[each.name], f"{name}.") if is_dataclass(hints[each.name]) else {name}
    return found


def _offered(schema: dict[str, Any], path: str = "") -> set[str]:
    """Return the dotted keys that a schema takes."""
    found: set[str] = set()
    for name, below in schema["properties"].items():
        found |= _offered(below, f"{path}{name}.") if below.get("type") == "object" else {f"{path}{name}"}
    return found


def _below(places: set[str], keys: set[str]) -> set[str]:
    """Return the keys at or below some places."""
    return {key for key in keys if any(key == place or key.startswith(f"{place}.") for place in places)}
