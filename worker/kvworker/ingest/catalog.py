"""Which passages a worker knows, per tenant: their tokens outlive every cached chunk, so a miss can always be computed.

A passage stands at a place (source and index), once for each way in which it was ingested. What stands nowhere any more, because its
document was edited, can still be asked for by its id until the catalog is full or the document is forgotten.
"""

from __future__ import annotations

import re
import sqlite3
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path

from kvstore.core.errors import CapacityError, ClosedError, CorruptError, InvalidInputError, KVError, NotFoundError
from kvstore.core.units import format_nbytes
from kvworker.ingest.passages import Known, Passage, Reading, readings_of

_SCHEMA = """
CREATE TABLE IF NOT EXISTS passages (
    tenant TEXT, namespace BLOB, content BLOB, parent BLOB, tokens BLOB, source TEXT, idx INTEGER, preview TEXT,
    PRIMARY KEY (tenant, namespace, content)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS places (
    tenant TEXT, namespace BLOB, source TEXT, idx INTEGER, read_as TEXT, content BLOB,
    PRIMARY KEY (tenant, namespace, source, idx, read_as)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS places_of_content ON places (tenant, namespace, content);
"""
_ID = re.compile(r"[0-9a-f]{8,64}")
# What stands nowhere, and nothing that stands somewhere was read behind it. :t and :n are the tenant and the namespace.
_UNNEEDED = """
WITH RECURSIVE needed(content) AS (
    SELECT content FROM places WHERE tenant=:t AND namespace=:n
    UNION SELECT p.parent FROM passages p JOIN needed USING (content) WHERE p.tenant=:t AND p.namespace=:n AND p.parent IS NOT NULL)
DELETE FROM passages WHERE tenant=:t AND namespace=:n AND content NOT IN (SELECT content FROM needed)
"""
_AND_FORGOTTEN = " AND source NOT IN (SELECT source FROM places WHERE tenant=:t AND namespace=:n)"
_MOST_VALUES = 500  # SQLite takes at least 999 values in one statement
_PLACE = re.compile(r"(?P<source>.+)#(?P<index>[0-9]{1,18})", re.DOTALL)  # 18 digits fit SQLite's integers


class Catalog:
    """Passages of one model in an SQLite file, or in memory when no path is given. Thread-safe; a damaged file raises CorruptError.

    A tenant's tokens take at most `capacity_bytes`, 4 B each.
    """

    def __init__(self, namespace: bytes, path: Path | None = None, capacity_bytes: int = 1 << 30) -> None:
        self._namespace, self._capacity_bytes = namespace, capacity_bytes
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
        """Say which passages a source consists of now, in order, by how they are read; `behind` gives others that these were read behind.

        How the source was ingested otherwise stays known up to the first passage whose text changed. Returns the contents that the source
        no longer consists of. Raises CapacityError, with nothing changed, if the tokens do not fit beside those of other documents.
        """
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
                raise CapacityError(
                    f"the tokens of {source!r} and of the documents known before take {format_nbytes(used)}, more than the"
                    f" {format_nbytes(self._capacity_bytes)} of worker.catalog_bytes; forget documents or raise it"
                )
            self._used_bytes[tenant] = used
            gone = before - self._contents(db, tenant, source)
        return sorted(gone)

    def forget(self, tenant: str, source: str) -> list[bytes]:
        """Drop a source and its passages, as they are and as they ever were; return the contents that it consisted of.

        Passages that other sources share, and those that passages of others were read behind, stay.
        """
        with self._open() as db:
            gone = self._contents(db, tenant, source)
            db.execute("DELETE FROM places WHERE tenant=? AND namespace=? AND source=?", (tenant, self._namespace, source))
            db.execute(_UNNEEDED + _AND_FORGOTTEN, {"t": tenant, "n": self._namespace})
            self._used_bytes[tenant] = self._count(db, tenant)
        return sorted(gone)

    def find(self, tenant: str, name: str) -> Passage:
        """Return the passage that an identity of 8 to 64 hex digits, or "source#index", names: the latter as it was read in its document.

        Raises NotFoundError, or InvalidInputError when the name is malformed or stands for several passages.
        """
        if _ID.fullmatch(name):
            return self._where_it_stands(tenant, self._find_by_start(tenant, name))
        place = _PLACE.fullmatch(name)
        if place is None:
            raise InvalidInputError(f"{name!r} names no passage; write 8 to 64 hex digits of its identity, or source#index")
        if name not in (standing := self._standing(tenant, [name])):
            raise NotFoundError(f"no passage {name!r} is known here; ingest {place['source']!r} first")
        return standing[name]

    def readings(self, tenant: str, names: Sequence[str], read_as: str) -> list[tuple[Passage, tuple[Reading, ...]]]:
        """Return the passages that names stand for, each with the readings of it that may be used, the best first; see `readings_of`."""
        standing = self._standing(tenant, names)
        named = [standing.get(name) or self.find(tenant, name) for name in names]
        alone = [p.alone(self._namespace) for p in named]
        known = self._known(tenant, [p.content for p in (*named, *alone)])
        return [(p, readings_of(p, a, read_as, known)) for p, a in zip(named, alone, strict=True)]

    def chain(self, tenant: str, passage: Passage) -> list[Passage]:
        """Return the passages that this one was read behind, first to last, and itself."""
        found = [passage]
        while (parent := found[-1].parent) is not None:
            found.append(self._find_by_start(tenant, parent.hex()))
        return found[::-1]

    def listing(self, tenant: str, source: str = "", limit: int = 1000) -> list[Passage]:
        """Return passages in the order of their sources, of one source if it is named; each once, as it was read in its document."""
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

    def _known(self, tenant: str, contents: Sequence[bytes]) -> Known:
        """Return which of these contents stand somewhere, and how they are read there."""
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
        now = [_pack(p.token_ids) for p in next(iter(placed.values()))]
        others = [tokens for (tokens,) in db.execute(query, (*own, *placed))]
        n_same = next((i for i, pair in enumerate(zip(others, now, strict=False)) if pair[0] != pair[1]), min(len(others), len(now)))
        db.execute(f"DELETE FROM places WHERE tenant=? AND namespace=? AND source=? AND ({is_placed} OR idx>=?)", (*own, *placed, n_same))

    def _insert(self, db: sqlite3.Connection, tenant: str, passages: Iterable[Passage]) -> int:
        """Add passages, known ones stay as they are; return the bytes that the tenant's tokens then take."""
        used = self._used_bytes[tenant] if tenant in self._used_bytes else self._count(db, tenant)
        for p in passages:
            tokens = _pack(p.token_ids)
            row = (tenant, self._namespace, p.content, p.parent, tokens, p.source, p.index, p.preview)
            used += len(tokens) * db.execute("INSERT OR IGNORE INTO passages VALUES (?,?,?,?,?,?,?,?)", row).rowcount
        return used

    def _count(self, db: sqlite3.Connection, tenant: str) -> int:
        """Return the bytes that a tenant's tokens take."""
        query = "SELECT COALESCE(SUM(LENGTH(tokens)), 0) FROM passages WHERE tenant=? AND namespace=?"
        return int(db.execute(query, (tenant, self._namespace)).fetchone()[0])

    def _where_it_stands(self, tenant: str, passage: Passage) -> Passage:
        """Return a passage with its first place; one that stands nowhere any more keeps the place where it was ingested."""
        query = "SELECT source, idx FROM places WHERE tenant=? AND namespace=? AND content=? ORDER BY source, idx LIMIT 1"
        with self._open() as db:
            place = db.execute(query, (tenant, self._namespace, passage.content)).fetchone()
        return replace(passage, source=place[0], index=place[1]) if place else passage

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

    def _standing(self, tenant: str, names: Sequence[str]) -> dict[str, Passage]:
        """Return the passages that those of `names` which are written source#index stand for, as they were read in their documents."""
        places = {(found["source"], int(found["index"])): name for name in names if (found := _PLACE.fullmatch(name))}
        passages: list[Passage] = []
        for at in range(0, len(places), _MOST_VALUES // 2):
            some = list(places)[at : at + _MOST_VALUES // 2]
            where = (
                "JOIN places q ON q.tenant=p.tenant AND q.namespace=p.namespace AND q.content=p.content WHERE q.tenant=? AND q.namespace=?"
                f" AND (q.source, q.idx) IN (VALUES {','.join(['(?,?)'] * len(some))}) ORDER BY q.read_as<>'alone'"
            )
            passages += self._select(where, (tenant, self._namespace, *chain.from_iterable(some)), place="q")
        return {places[p.source, p.index]: p for p in passages}

    def _select(self, where: str, values: Sequence[object], place: str = "p") -> list[Passage]:
        """Return the passages of a query; source and index come from the table named by `place`."""
        columns = f"p.content, p.parent, p.tokens, {place}.source, {place}.idx, p.preview"
        with self._open() as db:
            rows = db.execute(f"SELECT {columns} FROM passages p {where}", tuple(values)).fetchall()
        return [_passage(*row) for row in rows]


def _pack(token_ids: Sequence[int]) -> bytes:
    """Return token ids as little-endian uint32."""
    return struct.pack(f"<{len(token_ids)}I", *token_ids)


def _passage(content: bytes, parent: bytes | None, tokens: bytes, source: str, index: int, preview: str) -> Passage:
    """Build a passage from a row."""
    return Passage(content, parent, struct.unpack(f"<{len(tokens) // 4}I", tokens), source, index, preview)
