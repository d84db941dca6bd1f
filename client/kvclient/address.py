"""Where servers are: host:port, and the worker's where nobody says."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from kvstore.core.errors import ConfigError

ADDRESS_VARIABLE = "LARDER_ADDRESS"
DEFAULT_ADDRESS = "127.0.0.1:7420"
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\[\]:,/\s]+):(?P<port>[0-9]{1,5})")


def discover_address(address: str | None, environ: Mapping[str, str] | None = None) -> str:
    """Return the given address, else $LARDER_ADDRESS, else the default port of this machine."""
    return address or (os.environ if environ is None else environ).get(ADDRESS_VARIABLE, "") or DEFAULT_ADDRESS


def split_address(address: str, least_port: int = 1, otherwise: str = "") -> tuple[str, int]:
    """Return host and port; raises ConfigError where it is not host:port, which says what it may be `otherwise`."""
    match = _ADDRESS.fullmatch(address)
    if match is None or not least_port <= int(match["port"]) < 65536:
        raise ConfigError(f"{address!r} is no address: write host:port, with a port of {least_port} to 65535{otherwise}")
    return match["host"], int(match["port"])


def check_address(address: str, least_port: int = 1, otherwise: str = "") -> str:
    """Return an address, which may be a Unix socket's, as it is; raises ConfigError like `split_address`."""
    if not address.startswith("unix:"):
        split_address(address, least_port, otherwise)
    return address
