"""The tokens file: which bearer token stands for which tenant. The server checks calls against it, local clients read their own from it.

One line per token, "tenant token" or "tenant token admin"; empty lines and lines that begin with "#" are skipped. A tenant may have several
tokens, so that one can be replaced without a gap. Only the owner may read the file.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kvstore.core.errors import ConfigError

DEFAULT_TENANT = "default"
ADMIN = "admin"
MIN_TOKEN_LENGTH = 16
MAX_TOKEN_LENGTH = 512
_MAX_FILE_NBYTES = 1 << 20
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TOKEN = re.compile(rf"[!-~]{{{MIN_TOKEN_LENGTH},{MAX_TOKEN_LENGTH}}}")


@dataclass(frozen=True)
class Credential:
    """A tenant and a token that stands for it; `line` of its file names the token where the token itself must not be told."""

    tenant: str
    token: str
    is_admin: bool = False
    line: int = 0

    def __repr__(self) -> str:
        return f"Credential(tenant={self.tenant!r}, token=..., is_admin={self.is_admin}, line={self.line})"


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """Return where a store keeps its files unless told otherwise: $XDG_STATE_HOME/larder, else ~/.local/state/larder."""
    state = environ.get("XDG_STATE_HOME", "")
    return (Path(state) if state else Path.home() / ".local" / "state") / "larder"


def default_tokens_file(data_dir: Path) -> Path:
    """Return the tokens file of a data directory."""
    return data_dir / "tokens"


def create_tokens(path: Path) -> None:
    """Write a tokens file with one random token for the tenant "default", an admin; a file that is there already stays as it is.

    The file appears complete or not at all, readable by its owner only.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(f"# tenant token [{ADMIN}]\n{DEFAULT_TENANT} {secrets.token_urlsafe(32)} {ADMIN}\n")
        os.link(draft, path)
    except FileExistsError:
        pass  # another process was first; its tokens count
    finally:
        draft.unlink()


def read_tokens(path: Path) -> tuple[Credential, ...]:
    """Read a tokens file; a missing or malformed file, or one that others may read, raises ConfigError without quoting a token."""
    try:
        with path.open("rb") as file:
            _check_private(path, os.fstat(file.fileno()).st_mode)
            data = file.read(_MAX_FILE_NBYTES + 1)
    except OSError as error:
        raise ConfigError(f"tokens file {path}: {error.strerror}") from error
    if len(data) > _MAX_FILE_NBYTES:
        raise ConfigError(f"tokens file {path}: more than {_MAX_FILE_NBYTES} B")
    credentials = parse_tokens(data.decode("utf-8", "replace"), str(path))
    if not credentials:
        raise ConfigError(f"tokens file {path} holds no token; add a line 'tenant token'")
    return credentials


def parse_tokens(text: str, name: str) -> tuple[Credential, ...]:
    """Read the lines of a tokens file called `name`; a malformed line or a token that two lines share raises ConfigError."""
    credentials = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        tenant, token, *role = (*words, "")[: max(len(words), 2)]
        if not is_tenant(tenant) or not _TOKEN.fullmatch(token) or role not in ([], [ADMIN]):
            raise ConfigError(
                f"tokens file {name}, line {number}: write 'tenant token' or 'tenant token {ADMIN}', a tenant of 1 to 64 letters, digits, "
                f"'.', '_' or '-' and a token of {MIN_TOKEN_LENGTH} to {MAX_TOKEN_LENGTH} printable characters"
            )
        credentials.append(Credential(tenant, token, bool(role), number))
    if len({c.token for c in credentials}) != len(credentials):
        raise ConfigError(f"tokens file {name}: two lines have the same token")
    return tuple(credentials)


def is_tenant(name: str) -> bool:
    """Tell whether a name can be a tenant's."""
    return _TENANT.fullmatch(name) is not None


def _check_private(path: Path, mode: int) -> None:
    """Raise ConfigError if anybody but the owner may read or write the file."""
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"tokens file {path} has mode {stat.S_IMODE(mode):04o}, so others may read it; run: chmod 600 {path}")
