"""What can be configured about a worker, and what is refused."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from kvstore.core.errors import ConfigError
from kvstore.server.config import ENV_PREFIX as STORE_PREFIX
from kvstore.server.config import ServerConfig, StoreConfig, load
from kvstore.server.settings import to_toml
from kvworker.reference import MODEL_FOLDER
from kvworker.serve.config import ENV_PREFIX, ModelConfig, StoreAddress, UpConfig, WorkerConfig
from kvworker.settings import WorkerSettings

PREFIXES = (STORE_PREFIX, ENV_PREFIX)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("window_tokens", -1),
        ("device_bytes", -1),
        ("push_bytes", -1),
        ("restore_passages", -1),
        ("max_new_tokens", 0),
        ("load_threads", 0),
        ("load_timeout_s", 0.0),
        ("load_timeout_s", float("nan")),
        ("load_slack_s", 0.0),
        ("load_slack_s", float("nan")),
        ("question_template", "no place"),
        ("question_template", "{question} {question}"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    """When it is built, not when it is first used."""
    with pytest.raises(ConfigError, match=field):
        WorkerSettings(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["window_tokens", "device_bytes", "push_bytes", "restore_passages"])
def test_zero_is_a_setting(field: str) -> None:
    """It turns off, or leaves the choice to the model."""
    assert getattr(WorkerSettings(**{field: 0}), field) == 0  # type: ignore[arg-type]


def test_store_and_worker_in_one_process_take_every_setting_of_a_store() -> None:
    """A file that was written for a store must do for both."""
    assert {f.name for f in fields(StoreConfig)} < {f.name for f in fields(UpConfig)}
    flags = {"quotas.stored": "1GiB", "encryption.keys_file": "keys"}
    local = load(UpConfig, PREFIXES, None, {}, flags).local
    assert (local.quotas.stored, local.encryption.keys_file) == (1 << 30, "keys")


def test_an_unknown_key_is_refused_with_the_known_ones_and_the_likeliest() -> None:
    """A typing error must not become a default."""
    with pytest.raises(ConfigError, match=r"worker\.polici is not known; did you mean policy\?.*Known here: .*codec.*window_tokens"):
        load(UpConfig, PREFIXES, environ={"LARDER_WORKER__WORKER__POLICI": "none"})


@pytest.mark.parametrize("key", ["LARDER_WORKER__STORE__ADDRESS", "LARDER_STORE__STORE__ADDRESS"])
def test_a_key_of_a_separate_worker_is_unknown_to_all_in_one(key: str) -> None:
    """`larder up` has its store inside."""
    with pytest.raises(ConfigError, match="store"):
        load(UpConfig, PREFIXES, environ={key: "127.0.0.1:1"})


def test_a_worker_of_its_own_does_not_read_the_variables_of_a_store() -> None:
    """Both may run in one environment."""
    config = load(WorkerConfig, (ENV_PREFIX,), environ={"LARDER_STORE__TIERS__MEMORY__CAPACITY": "1GiB", "LARDER_WORKER__DATA_DIR": "d"})
    assert config == WorkerConfig(data_dir="d")


def test_flags_win_over_variables_and_variables_over_the_file(tmp_path: Path) -> None:
    """In this order."""
    file = tmp_path / "larder.toml"
    file.write_text('data_dir = "file"\n[worker]\npolicy = "file"\ncodec = "file"\nplanner = "file"\n')
    environ = {"LARDER_WORKER__WORKER__POLICY": "variable", "LARDER_WORKER__WORKER__CODEC": "variable"}
    config = load(UpConfig, PREFIXES, file, environ, {"worker.policy": "flag"})
    assert (config.worker.policy, config.worker.codec, config.worker.planner) == ("flag", "variable", "file")


@pytest.mark.parametrize("cls", [UpConfig, WorkerConfig])
def test_a_printed_configuration_reads_back_the_same(cls: type[UpConfig | WorkerConfig], tmp_path: Path) -> None:
    """`--print-config` writes a file to begin with."""
    file = tmp_path / "printed.toml"
    config = cls(data_dir='a "quoted" dir', worker=WorkerSettings(question_template="Q: {question}\nA:"))
    file.write_text(to_toml(config))
    assert load(cls, (), file, {}) == config


@pytest.mark.parametrize("timeout_s", [0.0, -1.0])
def test_a_store_that_is_waited_for_in_no_time_is_refused(timeout_s: float) -> None:
    """Every call would fail."""
    with pytest.raises(ConfigError, match="timeout_s"):
        StoreAddress(timeout_s=timeout_s)


def test_a_negative_number_of_threads_is_refused() -> None:
    """Rather than by the library, in its words."""
    with pytest.raises(ConfigError, match="threads"):
        ModelConfig(threads=-1)


def test_without_a_directory_the_model_is_the_reference_model() -> None:
    """`larder up` needs no argument."""
    assert ModelConfig().path == MODEL_FOLDER
    assert (MODEL_FOLDER / "config.json").exists()


@pytest.mark.parametrize("key", ["LARDER_WORKER__WORKER__DEVICE_BYTES", "LARDER_WORKER__WORKER__PUSH_BYTES"])
def test_budgets_may_be_written_as_people_write_sizes(key: str) -> None:
    """Like every other size."""
    config = load(UpConfig, PREFIXES, environ={key: "3MiB"})
    assert 3 << 20 in (config.worker.device_bytes, config.worker.push_bytes)


@pytest.mark.parametrize("cls", [UpConfig, WorkerConfig])
def test_a_catalog_in_plain_text_on_another_machine_is_refused(cls: type[UpConfig] | type[WorkerConfig]) -> None:
    """It holds the tokens of every document."""
    settings = WorkerSettings(catalog_url="redis://:hunter2@catalog:6379/0")
    with pytest.raises(ConfigError, match=r"worker\.catalog_url leads to catalog:6379 in plain text") as caught:
        cls(worker=settings)
    assert "hunter2" not in str(caught.value)
    assert cls(worker=settings, server=ServerConfig(allow_plaintext=True)).worker is settings


def test_the_catalogs_password_is_shown_nowhere() -> None:
    """Neither in what is printed nor in what an error or a log line says of all settings."""
    config = WorkerConfig(worker=WorkerSettings(catalog_url="rediss://:hunter2@catalog?ssl_keyfile_password=hunter2"))
    assert "hunter2" not in f"{to_toml(config)} {config!r}"
    assert "rediss://:***@catalog" in to_toml(config)


@pytest.mark.parametrize("address", ["store:7420", "127.0.0.1:7420,store:7420", "dns:stores:7420", "192.0.2.7:1"])
def test_a_store_in_plain_text_on_another_machine_is_refused(address: str) -> None:
    """Callers' tokens would cross the network."""
    with pytest.raises(ConfigError, match=r"store\.address .* in plain text"):
        WorkerConfig(store=StoreAddress(address))
    assert WorkerConfig(store=StoreAddress(address, ca="ca.pem")).store.tls
    assert WorkerConfig(store=StoreAddress(address), server=ServerConfig(allow_plaintext=True)).store.is_plain_to_others


def test_stores_of_this_machine_need_no_certificate() -> None:
    """Nothing leaves it."""
    assert not WorkerConfig(store=StoreAddress("127.0.0.1:1,[::1]:2,localhost:3")).store.is_plain_to_others
