"""Who may use a Redis: passwords, users, TLS, and settings that cannot work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore.core.errors import ConfigError, TierUnavailableError
from kvstore.core.landing import PIECE_NBYTES
from kvstore.store.redis.settings import RedisSettings
from kvstore.store.redis.tier import RedisTier
from tests.certificates import make_certificates
from tests.redis_server import RedisServer
from tests.store.chunks import make_record
from tests.store.redis.tls_proxy import TlsProxy


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """One real Redis for the module."""
    with RedisServer() as running:
        yield running


def read(tier: RedisTier, key: bytes) -> bytes | None:
    """Return the whole record, or None."""
    landing = tier.get(key)
    if landing is None:
        return None
    landing.fill(landing.nbytes)
    return bytes(landing.view)


@pytest.fixture(scope="module")
def guarded() -> Iterator[RedisServer]:
    """A Redis that wants a password, and knows a user who may only use our keys."""
    with RedisServer() as running:
        running.command("ACL", "SETUSER", "larder", "on", ">word", "~larder:*", "+@all")
        running.command("CONFIG", "SET", "requirepass", "secret")
        yield running


@pytest.mark.parametrize("who", [":secret", "default:secret", "larder:word"])
@pytest.mark.parametrize("way", ["tcp", "unix"])
def test_a_password_or_a_user_opens_the_door(guarded: RedisServer, who: str, way: str) -> None:
    """On both kinds of socket, for records and for what redis-py asks."""
    place = f"redis://{who}@127.0.0.1:{guarded.port}/1" if way == "tcp" else f"unix://{who}@{guarded.socket}?client_name=larder"
    url = place if who != "larder:word" else place.replace("/1", "/0") if way == "tcp" else place
    tier = RedisTier(RedisSettings(url, timeout_s=5.0))
    key, record = make_record(50, PIECE_NBYTES)
    tier.put(key, [record])
    assert read(tier, key) == record
    assert [item.key for item in tier.scan()] == [key]
    assert tier.delete(key)
    tier.close()


@pytest.mark.parametrize("who", ["", ":wrong@", "larder:secret@"])
def test_a_wrong_password_is_unavailable_and_stays_out_of_the_message(guarded: RedisServer, who: str) -> None:
    """The server's own words say why."""
    tier = RedisTier(RedisSettings(f"redis://{who}127.0.0.1:{guarded.port}/0", timeout_s=5.0))
    with pytest.raises(TierUnavailableError, match=r"NOAUTH|WRONGPASS") as caught:
        tier.get(bytes(32))
    assert "secret" not in str(caught.value)
    tier.close()


def test_records_travel_under_tls(server: RedisServer, tmp_path: Path) -> None:
    """The server's certificate is verified, and ours is shown."""
    make_certificates(tmp_path)
    with TlsProxy(server.port, tmp_path) as proxy:
        query = f"ssl_ca_certs={tmp_path}/ca.pem&ssl_certfile={tmp_path}/client.pem&ssl_keyfile={tmp_path}/client.key"
        tier = RedisTier(RedisSettings(f"rediss://localhost:{proxy.port}?{query}", timeout_s=5.0))
        key, record = make_record(60, 5 * PIECE_NBYTES)
        tier.put(key, [record])
        assert read(tier, key) == record
        assert tier.used_bytes > 0
        tier.close()


def test_a_certificate_of_nobody_we_know_is_refused(server: RedisServer, tmp_path: Path) -> None:
    """Without ssl_ca_certs the system's authorities decide."""
    make_certificates(tmp_path)
    with TlsProxy(server.port, tmp_path) as proxy:
        tier = RedisTier(RedisSettings(f"rediss://localhost:{proxy.port}", timeout_s=5.0))
        with pytest.raises(TierUnavailableError, match="certificate verify failed"):
            tier.get(bytes(32))
        tier.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://h:1", "not one"), ("redis://h:1?max_connection=4", "unknown options"), ("rediss://h?ssl_cert_reqs=maybe", "required"),
        ("rediss://h?ssl_ca_certs=/nowhere.pem", "cannot be used"),
    ],
)  # fmt: skip
def test_a_url_that_cannot_work_says_why(url: str, message: str) -> None:
    """Before anything is sent."""
    with pytest.raises(ConfigError, match=message):
        RedisTier(RedisSettings(url))


@pytest.mark.parametrize("setting", [{"timeout_s": 0.0}, {"ttl_s": -1}, {"cluster": "maybe"}, {"connections": 0}, {"ahead": -1}])
def test_settings_out_of_range_are_refused(setting: dict[str, object]) -> None:
    """The message names them."""
    with pytest.raises(ConfigError, match="redis needs"):
        RedisSettings("redis://h", **setting)  # type: ignore[arg-type]
