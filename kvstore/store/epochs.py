"""Epochs: numbers that are part of storage keys, so that raising one makes everything stored under it a miss.

They are kept in one small file that is replaced durably before a new number is used: an invalidation that returned is never forgotten. A
file that is damaged stops the start, because epochs that fell back to 0 would bring invalidated chunks to life.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvstore.core import canonical
from kvstore.core.api import Scope
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
        self._digests: dict[str, bytes] = {}
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
        with self._lock:
            epoch = self._of(kind).get(tenant, {}).get(name, 0) + 1
            self._raise(tenant, {Scope(kind, name): epoch})
            return epoch

    def raise_to(self, tenant: str, at_least: Mapping[Scope, int]) -> bool:
        """Raise a tenant's epochs to at least these, all or none, as durably as `raise_epoch`; return whether any was lower."""
        with self._lock:
            higher = {s: epoch for s, epoch in at_least.items() if epoch > self._of(s.kind).get(tenant, {}).get(s.value, 0)}
            self._raise(tenant, higher)
            return bool(higher)

    def of_tenant(self, tenant: str) -> tuple[bytes, dict[Scope, int]]:
        """Return a digest of all epochs of a tenant, and them."""
        with self._lock:
            found = {Scope(kind, name): epoch for kind in KINDS for name, epoch in self._epochs[kind].get(tenant, {}).items()}
            if tenant not in self._digests:
                self._digests[tenant] = xxh3(canonical.dumps(sorted([s.kind, s.value, epoch] for s, epoch in found.items())))
            return self._digests[tenant], found

    def _raise(self, tenant: str, raised: Mapping[Scope, int]) -> None:
        """Set epochs, in the file too, or none of them."""
        if longest := max((len(text) for scope in raised for text in (tenant, scope.value) if len(text) > MAX_NAME_CHARS), default=0):
            raise InvalidInputError(f"a name of {longest} characters cannot be invalidated; at most {MAX_NAME_CHARS}")
        before = [(scope, self._of(scope.kind).setdefault(tenant, {}).get(scope.value)) for scope in raised]
        for scope, epoch in raised.items():
            self._of(scope.kind)[tenant][scope.value] = epoch
        try:
            if raised:
                self._save()
        except OSError:
            for scope, old in before:
                self._put_back(self._of(scope.kind)[tenant], scope.value, old)
            raise
        self._digests.pop(tenant, None)

    @staticmethod
    def _put_back(names: dict[str, int], name: str, epoch: int | None) -> None:
        """Undo one change in memory."""
        if epoch is None:
            names.pop(name, None)
        else:
            names[name] = epoch

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
