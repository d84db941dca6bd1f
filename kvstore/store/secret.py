"""The master secret, from which tenants' keys derive: given by the configuration, or made once and kept in a file."""

from __future__ import annotations

import secrets
import stat
from contextlib import suppress
from pathlib import Path

from kvstore.core.errors import ConfigError
from kvstore.store.files import write_once

SECRET_NBYTES = 32


def parse_secret(text: str) -> bytes:
    """Read a secret of 64 hex digits; servers that share a Redis tier must share it. Anything else raises ConfigError."""
    try:
        secret = bytes.fromhex(text.strip())
    except ValueError:
        secret = b""
    if len(secret) != SECRET_NBYTES:  # the message must not repeat the secret
        raise ConfigError(f"the master secret must be {2 * SECRET_NBYTES} hex digits, got {len(text.strip())} characters")
    return secret


def load_secret(path: Path) -> bytes:
    """Return the secret in a file, which is made when it is missing; one that others may read raises ConfigError."""
    with suppress(FileExistsError):
        if not path.exists():
            write_once(path, secrets.token_hex(SECRET_NBYTES).encode() + b"\n")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise ConfigError(
            f"{path} has mode {mode:04o}, so others may read it; run: chmod 600 {path}, and replace the secret if it may be known"
        )
    return parse_secret(path.read_text("ascii", errors="replace"))
