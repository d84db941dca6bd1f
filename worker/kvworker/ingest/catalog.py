"""Which passages a worker knows, per tenant: their tokens outlive every cached chunk, so a miss can always be computed."""

from __future__ import annotations

import re
import sqlite3
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kvstore.core.errors import ClosedError, CorruptError, InvalidInputError, KVError, NotFoundError
from kvworker.ingest.passages import Passage

_SCHEMA = """
CREATE TABLE IF NOT EXISTS passages (
    tenant TEXT, namespace BLOB, content BLOB, parent BLOB, tokens BLOB, source TEXT, idx INTEGER, preview TEXT,
    PRIMARY KEY (tenant, namespace, content)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS places (
    tenant TEXT, namespace BLOB, source TEXT, idx INTEGER, content BLOB,
    PRIMARY KEY (tenant, namespace, source, idx)) WITHOUT ROWID;
"""
_ID = re.compile(r"[0-9a-f]{8,64}")
_PLACE = re.compile(r"(?P<source>.+)#(?P<index>[0-9]{1,18})", re.DOTALL)  # 18 digits fit SQLite's integers


class Catalog:
    """Passages of one model in an SQLite file, or in memory when no path is given. Thread-safe; a damaged file raises CorruptError."""

    def __init__(self, namespace: bytes, path: Path | None = None) -> None:
        self._namespace = namespace
        self._lock = threading.Lock()
        self._is_closed = False
        self._db = sqlite3.connect(path or ":memory:", check_same_thread=False)
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise CorruptError(f"catalog {path}: {error}; free the disk or move the file away and ingest again") from error

    def add(self, tenant: str, passages: Iterable[Passage]) -> None:
        """Remember passages; known ones stay as they are."""
        rows = [
            (tenant, self._namespace, p.content, p.parent, struct.pack(f"<{len(p.token_ids)}I", *p.token_ids), p.source, p.index, p.preview)
            for p in passages
        ]
        with self._open() as db:
            db.executemany("INSERT OR IGNORE INTO passages VALUES (?,?,?,?,?,?,?,?)", rows)

    def place(self, tenant: str, source: str, contents: Sequence[bytes]) -> None:
        """Say which passages a source consists of now, in order; what it consisted of before is no longer listed under it."""
        rows = [(tenant, self._namespace, source, index, content) for index, content in enumerate(contents)]
        with self._open() as db:
            db.execute("DELETE FROM places WHERE tenant=? AND namespace=? AND source=?", (tenant, self._namespace, source))
            db.executemany("INSERT INTO places VALUES (?,?,?,?,?)", rows)

    def find(self, tenant: str, name: str) -> Passage:
        """Return the passage that an identity of 8 to 64 hex digits, or "source#index", names.

        Raises NotFoundError, or InvalidInputError when the name is malformed or stands for several passages.
        """
        if _ID.fullmatch(name):
            return self._find_by_start(tenant, name)
        place = _PLACE.fullmatch(name)
        if place is None:
            raise InvalidInputError(f"{name!r} names no passage; write 8 to 64 hex digits of its identity, or source#index")
        rows = self._select(
            "JOIN places q ON q.tenant=p.tenant AND q.namespace=p.namespace AND q.content=p.content WHERE q.tenant=? AND q.namespace=?"
            " AND q.source=? AND q.idx=?",
            (tenant, self._namespace, place["source"], int(place["index"])),
            place="q",
        )
        if not rows:
            raise NotFoundError(f"no passage {name!r} is known here; ingest {place['source']!r} first")
        return rows[0]

    def chain(self, tenant: str, passage: Passage) -> list[Passage]:
        """Return the passages that this one was read behind, first to last, and itself."""
        chain = [passage]
        while (parent := chain[-1].parent) is not None:
            chain.append(self._find_by_start(tenant, parent.hex()))
        return chain[::-1]

    def listing(self, tenant: str, source: str = "", limit: int = 1000) -> list[Passage]:
        """Return passages in the order of their sources, of one source if it is named."""
        where = "JOIN places q ON q.tenant=p.tenant AND q.namespace=p.namespace AND q.content=p.content WHERE q.tenant=? AND q.namespace=?"
        values: list[object] = [tenant, self._namespace]
        if source:
            where, values = where + " AND q.source=?", [*values, source]
        return self._select(where + " ORDER BY q.source, q.idx LIMIT ?", (*values, limit), place="q")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._is_closed = True
            self._db.close()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Yield the database for one transaction; raises ClosedError, and KVError for what SQLite cannot do, as on a full disk."""
        with self._lock:
            if self._is_closed:
                raise ClosedError("the catalog is closed")
            try:
                with self._db:
                    yield self._db
            except sqlite3.Error as error:
                raise KVError(f"the catalog of passages failed: {error}") from error

    def _find_by_start(self, tenant: str, digits: str) -> Passage:
        """Return the one passage whose identity starts with these hex digits."""
        low, high = bytes.fromhex(digits.ljust(64, "0")), bytes.fromhex(digits.ljust(64, "f"))
        where = "WHERE p.tenant=? AND p.namespace=? AND p.content BETWEEN ? AND ? LIMIT 2"
        rows = self._select(where, (tenant, self._namespace, low, high))
        if not rows:
            raise NotFoundError(f"no passage {digits!r} is known here; ingest it first, or list what is known with `larder ls`")
        if len(rows) > 1:
            raise InvalidInputError(f"{digits!r} stands for several passages; write more digits")
        return rows[0]

    def _select(self, where: str, values: Sequence[object], place: str = "p") -> list[Passage]:
        """Return the passages of a query; source and index come from the table named by `place`."""
        columns = f"p.content, p.parent, p.tokens, {place}.source, {place}.idx, p.preview"
        with self._open() as db:
            rows = db.execute(f"SELECT {columns} FROM passages p {where}", tuple(values)).fetchall()
        return [_passage(*row) for row in rows]


def _passage(content: bytes, parent: bytes | None, tokens: bytes, source: str, index: int, preview: str) -> Passage:
    """Build a passage from a row."""
    return Passage(content, parent, struct.unpack(f"<{len(tokens) // 4}I", tokens), source, index, preview)
