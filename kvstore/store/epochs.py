"""Epochs: numbers that are part of storage keys, so that raising one makes everything stored under it a miss.

They are kept in one small file that is replaced durably before a new number is used: an invalidation that returned is never forgotten. A
file that is damaged stops the start, because epochs that fell back to 0 would bring invalidated chunks to life.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from kvstore.core import canonical
from kvstore.core.blob import xxh3
from kvstore.core.errors import CorruptError, FormatError, InvalidInputError
from kvstore.store.files import make_directory, replace_file

KINDS = ("model", "source", "tenant")
_FORMAT = "larder/epochs/1"
MAX_NAME_CHARS = 4096


class Epochs:
    """One number per (kind, tenant, name), 0 until it is raised. Thread-safe.

    Kinds: "tenant" (name ""), "model" (name: the namespace in hex), "source" (name: the source). All belong to one tenant.

    Parameters
    ----------
    path : Path or None
        The file; None keeps them in memory only, as long as what they guard. A damaged file raises CorruptError.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._epochs: dict[str, dict[str, dict[str, int]]] = {kind: {} for kind in KINDS}
        if path is not None and path.exists():
            self._epochs = _parse(path.read_bytes(), path)

    def current(self, kind: str, tenant: str, name: str = "") -> int:
        """Return an epoch; takes no lock, since a number is replaced in one step."""
        tenants = self._epochs.get(kind)
        if tenants is None:
            tenants = self._of(kind)
        names = tenants.get(tenant)
        return names.get(name, 0) if names else 0

    def raise_epoch(self, kind: str, tenant: str, name: str = "") -> int:
        """Raise an epoch by one and return it; it is in the file when this returns, or unchanged when writing raises OSError."""
        if len(tenant) > MAX_NAME_CHARS or len(name) > MAX_NAME_CHARS:
            raise InvalidInputError(f"a name of {max(len(tenant), len(name))} characters cannot be invalidated; at most {MAX_NAME_CHARS}")
        with self._lock:
            names = self._of(kind).setdefault(tenant, {})
            before = names.get(name, 0)
            names[name] = before + 1
            try:
                self._save()
            except OSError:
                names[name] = before
                raise
            return before + 1

    def _of(self, kind: str) -> dict[str, dict[str, int]]:
        if kind not in self._epochs:
            raise InvalidInputError(f"{kind!r} has no epoch; known are {', '.join(KINDS)}")
        return self._epochs[kind]

    def _save(self) -> None:
        if self._path is not None:
            make_directory(self._path.parent)
            replace_file(self._path, _spell(self._epochs))


def _spell(epochs: dict[str, dict[str, dict[str, int]]]) -> bytes:
    """Return the file's bytes: the digest of the canonical JSON in hex, a line end, and the JSON."""
    text = canonical.dumps({"format": _FORMAT, **epochs})
    return xxh3(text).hex().encode() + b"\n" + text


def _parse(data: bytes, path: Path) -> dict[str, dict[str, dict[str, int]]]:
    """Check and read the file's bytes."""
    digest, _, text = data.partition(b"\n")
    try:
        if digest != xxh3(text).hex().encode():
            raise CorruptError("its digest does not match")
        value: dict[str, Any] = canonical.loads(text)
        if value.pop("format", None) != _FORMAT or set(value) != set(KINDS):
            raise FormatError("it is not of a version that is known here")
    except (CorruptError, FormatError) as error:
        what = f"{path} is damaged: {error}; restore it, or remove it together with everything that was stored"
        raise CorruptError(what) from error
    return value
