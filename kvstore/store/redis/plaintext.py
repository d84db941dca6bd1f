"""Which Redis is spoken to in plain text over a network: its password, and chunks or texts, can be read on the way."""

from __future__ import annotations

import logging

from kvstore.core.errors import ConfigError
from kvstore.store.redis.dial import Address
from kvstore.store.redis.settings import read_url

_log = logging.getLogger(__name__)


def check_plaintext(setting: str, url: str) -> None:
    """Raise ConfigError for a URL that leads to another machine without TLS; "" leads nowhere."""
    if where := reached_in_plaintext(url):
        raise ConfigError(
            f"{setting} leads to {where} in plain text: use rediss://, or server.allow_plaintext = true where the network itself is private"
        )


def warn_of_plaintext(setting: str, url: str) -> None:
    """Leave a line in the log about a URL that leads to another machine without TLS."""
    if where := reached_in_plaintext(url):
        _log.warning("%s leads to %s in plain text", setting, where)


def reached_in_plaintext(url: str) -> str:
    """Return the server of a URL that leads to another machine without TLS; "" for any other URL, and for none."""
    if not url or url.startswith("rediss://"):
        return ""
    where = Address.of(read_url(url))
    return "" if where.is_near else str(where)
