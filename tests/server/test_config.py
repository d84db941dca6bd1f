"""Configuration: where values come from, and what is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from kvstore.core.errors import ConfigError
from kvstore.server.config import StoreConfig, load_config
from kvstore.server.settings import to_toml


def write(tmp_path: Path, text: str) -> Path:
    """Write a configuration file."""
    file = tmp_path / "larder.toml"
    file.write_text(text)
    return file


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    """Each layer changes what it names and nothing else."""
    file = write(tmp_path, '[server]\nmax_workers = 3\nidle_timeout_s = 3\n[tiers.memory]\ncapacity = "3MiB"\neviction = "lru"\n')
    environ = {"LARDER_STORE__SERVER__MAX_WORKERS": "4", "LARDER_STORE__TIERS__MEMORY__CAPACITY": "4MiB", "OTHER": "x"}
    config = load_config(file, environ, {"tiers.memory.capacity": "5MiB"})
    assert (config.server.idle_timeout_s, config.server.max_workers, config.tiers.memory.capacity) == (3.0, 4, 5 << 20)
    assert config.tiers.memory.eviction == "lru"


def test_without_any_source_the_defaults_count() -> None:
    """A store needs no file."""
    assert load_config(None, {}) == StoreConfig()


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("serverr", "server"),
        ("SERVER__MAX_WORKER", "max_workers"),
        ("TIERS__MEMRY__CAPACITY", "memory"),
        ("TIERS__MEMORY__SIZE", "Known here: capacity, eviction"),
    ],
)
def test_an_unknown_key_is_refused_with_the_known_ones(key: str, said: str) -> None:
    """A typing error must not silently leave a default in force."""
    with pytest.raises(ConfigError, match=said):
        load_config(None, {f"LARDER_STORE__{key}": "1"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("server.max_workers", "many"),
        ("server.max_workers", 2.5),
        ("server.max_workers", True),
        ("server.max_workers", 0),
        ("server.idle_timeout_s", "nan"),
        ("server.idle_timeout_s", -1),
        ("server.allow_plaintext", "perhaps"),
        ("server.max_blob_bytes", "12 parsecs"),
        ("server.max_blob_bytes", "2GiB"),
        ("server.tls.cert", "cert.pem"),
        ("server", 5),
        ("server.address.port", 5),
        ("server.address", ":7420"),
        ("server.address", "127.0.0.1:99999"),
        ("server.metrics_address", "nowhere"),
        ("tiers.redis.timeout_s", 0),
        ("tiers.redis.cluster", "maybe"),
        ("data_dir", 5),
    ],
)
def test_a_value_that_cannot_be_is_refused(key: str, value: object) -> None:
    """When the configuration is read, not when it is first used."""
    with pytest.raises(ConfigError):
        load_config(None, {}, {"server.address": "127.0.0.1:1", key: value} if key != "server" else {key: value})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("server.max_workers", "many", "'many' is not an integer"),
        ("server.idle_timeout_s", "soon", "'soon' is not a finite number"),
        ("server.allow_plaintext", "perhaps", "'perhaps' is not true or false"),
        ("serverr.max_workers", 1, r"serverr is not known; did you mean server\? Known here: auth"),
        ("quota", 1, r"quota is not known; did you mean quotas\?"),
        ("x", 1, r"x is not known\. Known here: auth"),
    ],
)
def test_a_message_says_what_is_wrong_with_a_value(key: str, value: object, said: str) -> None:
    """In words of the configuration, not of the interpreter."""
    with pytest.raises(ConfigError, match=said):
        load_config(None, {}, {key: value})


def test_a_message_names_the_place_of_a_wrong_value() -> None:
    """With the whole path."""
    with pytest.raises(ConfigError, match=r"tiers\.memory\.capacity"):
        load_config(None, {"LARDER_STORE__TIERS__MEMORY__CAPACITY": "big"})


@pytest.mark.parametrize("address", ["0.0.0.0:7420", "10.0.0.5:7420", "[::]:7420", "store.example:7420"])
def test_plain_text_to_other_machines_is_refused(address: str) -> None:
    """Unless somebody asks for it by name."""
    with pytest.raises(ConfigError, match="allow_plaintext"):
        load_config(None, {}, {"server.address": address})
    assert load_config(None, {}, {"server.address": address, "server.allow_plaintext": True}).server.address == address


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:7420", "[::1]:7420", "127.8.8.8:1"])
def test_plain_text_within_the_machine_is_served(address: str) -> None:
    """Loopback needs no certificate."""
    assert load_config(None, {}, {"server.address": address}).server.address == address


def test_a_redis_in_plain_text_on_another_machine_is_refused() -> None:
    """Passwords and chunks would cross the network; the flag is the one for listening."""
    flags = {"tiers.redis.url": "redis://cache:6379/0"}
    with pytest.raises(ConfigError, match=r"tiers\.redis\.url leads to cache:6379 in plain text"):
        load_config(None, {}, flags)
    assert load_config(None, {}, {**flags, "server.allow_plaintext": True}).tiers.redis.url == flags["tiers.redis.url"]


def test_a_missing_and_a_malformed_file_are_refused(tmp_path: Path) -> None:
    """With the file's name."""
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        load_config(tmp_path / "absent.toml", {})
    with pytest.raises(ConfigError, match=r"larder\.toml"):
        load_config(write(tmp_path, "[server\n"), {})


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """A certificate or a model in the place of a configuration is a slip of the hand."""
    (tmp_path / "larder.toml").write_bytes(b"\x00\xff")
    with pytest.raises(ConfigError, match=r"larder\.toml is not UTF-8 text: byte 1 is 0xff"):
        load_config(tmp_path / "larder.toml", {})


def test_a_printed_configuration_reads_back_the_same(tmp_path: Path) -> None:
    """So it can be a start for one's own."""
    config = load_config(None, {}, {"tiers.memory.capacity": 1000, "tiers.disk.capacity": "3GiB", "data_dir": 'a "quoted" \\ place'})
    assert load_config(write(tmp_path, to_toml(config)), {}) == config
    assert tomllib.loads(to_toml(config))["tiers"]["disk"]["capacity"] == "3072MiB"


def test_a_printed_configuration_shows_no_password() -> None:
    """It ends in bug reports."""
    url = "rediss://user:hunter2@cache:6379/0?ssl_keyfile_password=hunter2&ssl_ca_certs=/ca.pem"
    text = to_toml(load_config(None, {}, {"tiers.redis.url": url}))
    assert "hunter2" not in text
    assert "rediss://user:***@cache:6379/0?ssl_keyfile_password=***&ssl_ca_certs=/ca.pem" in text


def test_a_setting_that_is_refused_shows_no_password_of_another() -> None:
    """Errors end in logs."""
    with pytest.raises(ConfigError, match="timeout_s") as caught:
        load_config(None, {}, {"tiers.redis.url": "rediss://:hunter2@cache", "tiers.redis.timeout_s": 0})
    assert "hunter2" not in str(caught.value)


def test_the_data_directory_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$XDG_STATE_HOME, unless one is given."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert StoreConfig().tokens_path == tmp_path / "larder" / "tokens"
    assert StoreConfig(data_dir="/srv/kv").chunks_path == Path("/srv/kv/chunks")
