"""From names that people type to chunk keys."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kvclient.cli.options import Session
from kvclient.wire import MAX_ENTRIES
from kvstore.core.errors import InvalidInputError, NotFoundError, UnsupportedError
from kvstore.core.key import ChunkKey

_ID = re.compile(r"[0-9a-f]{8,64}")


def find_keys(session: Session, names: Sequence[str], readings: Sequence[str] = ("auto",)) -> list[ChunkKey]:
    """Return the keys of passages by id, start of an id or source#index, and of any stored chunk by its content key in hex.

    The worker knows its passages; what it does not know, or a store without a worker, is looked for among the stored chunks, where one
    name may stand for several variants. Of a passage the best reading is meant, unless `readings` names others. Raises NotFoundError and
    InvalidInputError.
    """
    return list(dict.fromkeys(key for name in names for key in _find(session, name, readings)))


def _find(session: Session, name: str, readings: Sequence[str]) -> list[ChunkKey]:
    """Return the keys that one name stands for."""
    try:
        return [row.key for read_as in readings for row in session.larder.resolve([name], read_as=read_as)]
    except (NotFoundError, UnsupportedError) as error:
        if not _ID.fullmatch(name):
            if isinstance(error, NotFoundError):
                raise
            raise InvalidInputError(f"{name!r} is not the start of an id (8 to 64 hex digits), and only a worker knows names") from error
    keys = [entry.key for entry in session.store.entries(MAX_ENTRIES) if entry.key.content.hex().startswith(name)]
    if not keys:
        raise NotFoundError(f"nothing is stored under {name}")
    if len({key.content for key in keys}) > 1:
        raise InvalidInputError(f"{name} begins the ids of {len({key.content for key in keys})} chunks; give more digits")
    return keys
