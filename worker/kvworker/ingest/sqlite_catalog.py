"""The catalog of one worker: an SQLite file of its own, or memory."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path

from kvstore.core.errors import ClosedError, CorruptError, KVError
from kvworker.ingest.catalog import Catalog, Place, pack, too_many, unpack
from kvworker.ingest.passages import Known, Passage

_SCHEMA = """
CREATE TABLE IF NOT EXISTS passages (
    tenant TEXT, namespace BLOB, content BLOB, parent BLOB, tokens BLOB, source TEXT, idx INTEGER, preview TEXT,
    PRIMARY KEY (tenant, namespace, content)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS places (
    tenant TEXT, namespace BLOB, source TEXT, idx INTEGER, read_as TEXT, content BLOB,
    PRIMARY KEY (tenant, namespace, source, idx, read_as)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS places_of_content ON places (tenant, namespace, content);
"""
# What stands nowhere, and nothing that stands somewhere was read behind it. :t and :n are the tenant and the namespace.
_UNNEEDED = """
WITH RECURSIVE needed(content) AS (
    SELECT content FROM places WHERE tenant=:t AND namespace=:n
    UNION SELECT p.parent FROM passages p JOIN needed USING (content) WHERE p.tenant=:t AND p.namespace=:n AND p.parent IS NOT NULL)
DELETE FROM passages WHERE tenant=:t AND namespace=:n AND content NOT IN (SELECT content FROM needed)
"""
_AND_FORGOTTEN = " AND source NOT IN (SELECT source FROM places WHERE tenant=:t AND namespace=:n)"
_MOST_VALUES = 500  # SQLite takes at least 999 values in one statement


class SqliteCatalog(Catalog):
    """Passages of one model in an SQLite file, or in memory when no path is given. Thread-safe; a damaged file raises CorruptError."""

    def __init__(self, namespace: bytes, path: Path | None = None, capacity_bytes: int = 1 << 30) -> None:
        super().__init__(namespace, capacity_bytes)
        self._used_bytes: dict[str, int] = {}
        self._lock = threading.Lock()
        self._is_closed = False
        self._db = sqlite3.connect(path or ":memory:", check_same_thread=False)
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise CorruptError(f"catalog {path}: {error}; free the disk or move the file away and ingest again") from error

    def add(self, tenant: str, source: str, placed: Mapping[str, Sequence[Passage]], behind: Iterable[Passage] = ()) -> list[bytes]:
        with self._open() as db:
            before = self._contents(db, tenant, source)
            self._keep_others(db, tenant, source, placed)
            rows = [(i, read_as, p.content) for read_as, passages in placed.items() for i, p in enumerate(passages)]
            places = [(tenant, self._namespace, source, *row) for row in rows]
            db.executemany("INSERT INTO places VALUES (?,?,?,?,?,?)", places)
            used = self._insert(db, tenant, [*behind, *(p for passages in placed.values() for p in passages)])
            if used > self._capacity_bytes:
                db.execute(_UNNEEDED, {"t": tenant, "n": self._namespace})
                used = self._count(db, tenant)
            if used > self._capacity_bytes:
                raise too_many(source, used, self._capacity_bytes)
            self._used_bytes[tenant] = used
            gone = before - self._contents(db, tenant, source)
        return sorted(gone)

    def forget(self, tenant: str, source: str) -> list[bytes]:
        with self._open() as db:
            gone = self._contents(db, tenant, source)
            db.execute("DELETE FROM places WHERE tenant=? AND namespace=? AND source=?", (tenant, self._namespace, source))
            db.execute(_UNNEEDED + _AND_FORGOTTEN, {"t": tenant, "n": self._namespace})
            self._used_bytes[tenant] = self._count(db, tenant)
        return sorted(gone)

    def listing(self, tenant: str, source: str = "", limit: int = 1000) -> list[Passage]:
        where = "JOIN places q ON q.tenant=p.tenant AND q.namespace=p.namespace AND q.content=p.content WHERE q.tenant=? AND q.namespace=?"
        values: list[object] = [tenant, self._namespace]
        if source:
            where, values = where + " AND q.source=?", [*values, source]
        once = (
            " AND (q.read_as='document' OR NOT EXISTS (SELECT 1 FROM places o WHERE o.tenant=q.tenant AND o.namespace=q.namespace"
            " AND o.source=q.source AND o.idx=q.idx AND o.read_as='document')) ORDER BY q.source, q.idx LIMIT ?"
        )
        return self._select(where + once, (*values, limit), place="q")

    def close(self) -> None:
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

    def _known(self, tenant: str, contents: Sequence[bytes]) -> Known:
        found: set[tuple[bytes, str]] = set()
        with self._open() as db:
            for at in range(0, len(contents), _MOST_VALUES):
                asked = contents[at : at + _MOST_VALUES]
                marks = ",".join("?" * len(asked))
                query = f"SELECT DISTINCT content, read_as FROM places WHERE tenant=? AND namespace=? AND content IN ({marks})"
                found.update(db.execute(query, (tenant, self._namespace, *asked)))
        return found

    def _contents(self, db: sqlite3.Connection, tenant: str, source: str) -> set[bytes]:
        """Return what a source consists of."""
        query = "SELECT content FROM places WHERE tenant=? AND namespace=? AND source=?"
        return {content for (content,) in db.execute(query, (tenant, self._namespace, source))}

    def _keep_others(self, db: sqlite3.Connection, tenant: str, source: str, placed: Mapping[str, Sequence[Passage]]) -> None:
        """Empty the places of a source, but for those that another way of reading gave to passages up to the first that changed."""
        own = (tenant, self._namespace, source)
        is_placed = f"read_as IN ({','.join('?' * len(placed))})"
        query = (
            "SELECT p.tokens FROM places q JOIN passages p USING (tenant, namespace, content)"
            f" WHERE q.tenant=? AND q.namespace=? AND q.source=? AND NOT q.{is_placed} ORDER BY q.idx"
        )
        now = [pack(p.token_ids) for p in next(iter(placed.values()))]
        others = [tokens for (tokens,) in db.execute(query, (*own, *placed))]
        n_same = next((i for i, pair in enumerate(zip(others, now, strict=False)) if pair[0] != pair[1]), min(len(others), len(now)))
        db.execute(f"DELETE FROM places WHERE tenant=? AND namespace=? AND source=? AND ({is_placed} OR idx>=?)", (*own, *placed, n_same))

    def _insert(self, db: sqlite3.Connection, tenant: str, passages: Iterable[Passage]) -> int:
        """Add passages, known ones stay as they are; return the bytes that the tenant's tokens then take."""
        used = self._used_bytes[tenant] if tenant in self._used_bytes else self._count(db, tenant)
        for p in passages:
            tokens = pack(p.token_ids)
            row = (tenant, self._namespace, p.content, p.parent, tokens, p.source, p.index, p.preview)
            used += len(tokens) * db.execute("INSERT OR IGNORE INTO passages VALUES (?,?,?,?,?,?,?,?)", row).rowcount
        return used

    def _count(self, db: sqlite3.Connection, tenant: str) -> int:
        """Return the bytes that a tenant's tokens take."""
        query = "SELECT COALESCE(SUM(LENGTH(tokens)), 0) FROM passages WHERE tenant=? AND namespace=?"
        return int(db.execute(query, (tenant, self._namespace)).fetchone()[0])

    def _of_contents(self, tenant: str, contents: Sequence[bytes]) -> dict[bytes, Passage]:
        found: dict[bytes, Passage] = {}
        for at in range(0, len(contents), _MOST_VALUES):
            asked = contents[at : at + _MOST_VALUES]
            own = (tenant, self._namespace, *asked)
            where = f"WHERE {{0}}.tenant=? AND {{0}}.namespace=? AND {{0}}.content IN ({','.join('?' * len(asked))})"
            passages = {p.content: p for p in self._select(where.format("p"), own)}
            query = f"SELECT q.content, q.source, q.idx FROM places q {where.format('q')} ORDER BY q.source DESC, q.idx DESC"
            with self._open() as db:  # of several places, the first comes last
                places = {content: (source, index) for content, source, index in db.execute(query, own)}
            found |= passages | {c: replace(passages[c], source=p[0], index=p[1]) for c, p in places.items() if c in passages}
        return found

    def _with_start(self, tenant: str, digits: str) -> list[Passage]:
        low, high = bytes.fromhex(digits.ljust(64, "0")), bytes.fromhex(digits.ljust(64, "f"))
        where = "WHERE p.tenant=? AND p.namespace=? AND p.content BETWEEN ? AND ? LIMIT 2"
        return self._select(where, (tenant, self._namespace, low, high))

    def _standing(self, tenant: str, places: Sequence[Place]) -> dict[Place, Passage]:
        passages: list[Passage] = []
        for at in range(0, len(places), _MOST_VALUES // 2):
            some = places[at : at + _MOST_VALUES // 2]
            where = (
                "JOIN places q ON q.tenant=p.tenant AND q.namespace=p.namespace AND q.content=p.content WHERE q.tenant=? AND q.namespace=?"
                f" AND (q.source, q.idx) IN (VALUES {','.join(['(?,?)'] * len(some))}) ORDER BY q.read_as<>'alone'"
            )
            passages += self._select(where, (tenant, self._namespace, *chain.from_iterable(some)), place="q")
        return {(p.source, p.index): p for p in passages}

    def _select(self, where: str, values: Sequence[object], place: str = "p") -> list[Passage]:
        """Return the passages of a query; source and index come from the table named by `place`."""
        columns = f"p.content, p.parent, p.tokens, {place}.source, {place}.idx, p.preview"
        with self._open() as db:
            rows = db.execute(f"SELECT {columns} FROM passages p {where}", tuple(values)).fetchall()
        return [_passage(*row) for row in rows]


def _passage(content: bytes, parent: bytes | None, tokens: bytes, source: str, index: int, preview: str) -> Passage:
    """Build a passage from a row."""
    return Passage(content, parent, unpack(tokens), source, index, preview)
