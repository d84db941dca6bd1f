"""Where the worker is."""

from __future__ import annotations

import os
from collections.abc import Mapping

ADDRESS_VARIABLE = "LARDER_ADDRESS"
DEFAULT_ADDRESS = "127.0.0.1:7420"


def discover_address(address: str | None, environ: Mapping[str, str] | None = None) -> str:
    """Return the given address, else $LARDER_ADDRESS, else the default port of this machine."""
    return address or (os.environ if environ is None else environ).get(ADDRESS_VARIABLE, "") or DEFAULT_ADDRESS
