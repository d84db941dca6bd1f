"""The keys that stored records are encrypted with: a file with several of them, so that one can replace another without a gap.

One line per key, "id key", the key in 64 hex digits; empty lines and lines that begin with "#" are skipped. The last key encrypts, all of
them decrypt. Only the owner may read the file. Without a key that was taken out, what it encrypted is a miss.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kvstore.core.errors import ConfigError

KEY_NBYTES = 32
MAX_ID_CHARS = 16
_MAX_FILE_NBYTES = 1 << 20
_ID = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_ID_CHARS}}}")
_HEX = re.compile(rf"[0-9A-Fa-f]{{{2 * KEY_NBYTES}}}")


@dataclass(frozen=True)
class KeyRing:
    """Keys by their ids; `newest` encrypts."""

    keys: Mapping[str, bytes]
    newest: str

    def __repr__(self) -> str:
        return f"KeyRing({', '.join(self.keys)}; newest {self.newest})"

    def cipher(self, key_id: str, storage_key: bytes) -> AESGCM | None:
        """Return the cipher of one record; None for a key that is not here.

        Its key is HKDF-SHA256 (RFC 5869) of the ring's over the storage key, which is an HMAC under the tenant's secret: no two tenants
        share a key, nor do two records.
        """
        key = self.keys.get(key_id)
        if key is None:
            return None
        return AESGCM(HKDF(SHA256(), KEY_NBYTES, salt=None, info=b"larder/record/1\0" + storage_key).derive(key))


def read_key_ring(path: Path) -> KeyRing:
    """Read a file of keys; a missing or malformed one, or one that others may read, raises ConfigError that quotes no key."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(_MAX_FILE_NBYTES + 1)
    except OSError as error:
        raise ConfigError(f"encryption.keys_file {path}: {error.strerror}") from error
    if mode & 0o077:
        raise ConfigError(f"encryption.keys_file {path} has mode {mode:04o}, so others may read it; run: chmod 600 {path}")
    return parse_key_ring(data, str(path))


def parse_key_ring(data: bytes, name: str) -> KeyRing:
    """Read the lines of a file of keys called `name`; raises ConfigError."""
    if len(data) > _MAX_FILE_NBYTES:
        raise ConfigError(f"encryption.keys_file {name}: more than {_MAX_FILE_NBYTES} B")
    keys: dict[str, bytes] = {}
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or not _ID.fullmatch(words[0]) or not _HEX.fullmatch(words[1]):
            raise ConfigError(
                f"encryption.keys_file {name}, line {number}: write 'id key', an id of 1 to {MAX_ID_CHARS} letters, digits, '.', '_' or "
                f"'-' and a key of {2 * KEY_NBYTES} hex digits: openssl rand -hex {KEY_NBYTES}"
            )
        if words[0] in keys:
            raise ConfigError(f"encryption.keys_file {name}, line {number}: a second key is called {words[0]}")
        keys[words[0]] = bytes.fromhex(words[1])
    if not keys:
        raise ConfigError(f"encryption.keys_file {name} holds no key; add a line 'id key'")
    return KeyRing(keys, newest=list(keys)[-1])
