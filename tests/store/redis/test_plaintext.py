"""A Redis on another machine is reached under TLS, unless somebody asks for plain text by name."""

from __future__ import annotations

import logging

import pytest

from kvstore.core.errors import ConfigError
from kvstore.store.redis.plaintext import check_plaintext, warn_of_plaintext

FAR = [
    "redis://cache",
    "redis://:hunter2@10.0.0.7:6380/1",
    "redis://[2001:db8::7]:6379",
    "redis://?host=cache",
    "redis://localhost.example.test",
]
NEAR = ["", "redis://", "redis://127.0.0.1:6379/0", "redis://localhost", "redis://[::1]", "unix:///run/redis.sock", "rediss://:word@cache"]


@pytest.mark.parametrize("url", FAR)
def test_plain_text_to_another_machine_is_refused_without_its_password(url: str) -> None:
    """With what to write instead."""
    with pytest.raises(ConfigError, match=r"tiers\.redis\.url leads to .* use rediss://") as caught:
        check_plaintext("tiers.redis.url", url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", NEAR)
def test_what_stays_on_this_machine_or_is_encrypted_is_taken(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """And nobody is warned of it."""
    check_plaintext("tiers.redis.url", url)
    warn_of_plaintext("tiers.redis.url", url)
    assert caplog.records == []


def test_plain_text_that_was_asked_for_is_logged_without_its_password(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever reads the log learns what crosses the network."""
    with caplog.at_level(logging.WARNING):
        warn_of_plaintext("worker.catalog_url", FAR[1])
    assert caplog.messages == ["worker.catalog_url leads to 10.0.0.7:6380 in plain text"]
