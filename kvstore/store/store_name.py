"""A store's own name: it stays with the data, whatever address the store has, so that clients look for chunks where they lie."""

from __future__ import annotations

import re
import secrets
from contextlib import suppress
from pathlib import Path

from kvstore.core.errors import ConfigError
from kvstore.store.files import write_once

_NAME = re.compile("[0-9a-f]{32}")


def load_store_name(path: Path) -> str:
    """Return the name in a file, 32 hex digits, which is made when it is missing; another content raises ConfigError."""
    with suppress(FileExistsError):
        if not path.exists():
            write_once(path, secrets.token_hex(16).encode() + b"\n")
    name = path.read_text("ascii", errors="replace").strip()
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{path} should hold 32 hex digits; remove it, and the store takes a new name, with which clients look anew")
    return name
