"""What the shared catalog keeps in Redis, and what an edit changes there: decided here, from records to records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from hashlib import sha256

from kvstore.core import canonical
from kvstore.core.errors import CorruptError, FormatError
from kvstore.core.key import DIGEST_NBYTES
from kvworker.ingest.catalog import TOKEN_NBYTES, Place
from kvworker.ingest.passages import READ_AS, Passage

_FORMAT = "larder/catalog/1"


@dataclass(frozen=True)
class Names:
    """The keys of one tenant and model; all have one hash tag, and no tenant's name is part of them in clear.

    `version` rises with every edit; `used` counts bytes of tokens; `heads` and `tokens` hold passages by content, `ids` their contents in
    hex, sorted; `holders` says how many sources need a content, `idle` where each came from that none needs; `sources` are the names.
    """

    prefix: bytes
    version: bytes
    used: bytes
    heads: bytes
    tokens: bytes
    ids: bytes
    holders: bytes
    idle: bytes
    sources: bytes

    @classmethod
    def of(cls, tenant: str, namespace: bytes) -> Names:
        """Return the keys of a tenant's passages of one model."""
        tag = sha256(canonical.dumps([_FORMAT, tenant, namespace.hex()])).hexdigest()[:32]
        prefix = b"larder:catalog:{%s}:" % tag.encode()
        return cls(prefix, *(prefix + field.name.encode() for field in fields(cls)[1:]))

    def source(self, source: str) -> bytes:
        """Return the key of what a source consists of."""
        return self.prefix + b"source:" + sha256(source.encode()).hexdigest().encode()

    def at(self, read_as: str, content: bytes) -> bytes:
        """Return the key of the places at which a content stands, read in one way, sorted."""
        return self.prefix + b"at:" + read_as.encode() + b":" + content


@dataclass(frozen=True)
class Head:
    """A passage without its tokens, of which it has `nbytes`."""

    parent: bytes | None
    source: str
    index: int
    preview: str
    nbytes: int

    @classmethod
    def of(cls, passage: Passage) -> Head:
        """Return the head of a passage."""
        return cls(passage.parent, passage.source, passage.index, passage.preview, TOKEN_NBYTES * len(passage.token_ids))

    def passage(self, content: bytes, token_ids: tuple[int, ...]) -> Passage:
        """Return the passage."""
        return Passage(content, self.parent, token_ids, self.source, self.index, self.preview)

    def to_bytes(self) -> bytes:
        """Return the head as it is kept."""
        parent = self.parent.hex() if self.parent else ""
        return canonical.dumps([parent, self.source, self.index, self.preview, self.nbytes])

    @classmethod
    def from_bytes(cls, data: bytes) -> Head:
        """Read a head; raises CorruptError."""
        try:
            parent, source, index, preview, nbytes = _list(data)
            if len(str(parent)) not in (0, 2 * DIGEST_NBYTES):
                raise FormatError(f"what it was read behind has {len(str(parent))} hex digits")
            return cls(bytes.fromhex(str(parent)) or None, str(source), int(str(index)), str(preview), int(str(nbytes)))
        except (ValueError, FormatError) as error:
            raise CorruptError(f"a passage in the shared catalog is damaged: {error}; ingest its document again") from error


@dataclass(frozen=True)
class Source:
    """What a source consists of, by how it is read, and every content that has to be kept for it: those and what they were read behind."""

    placed: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    needed: frozenset[bytes] = frozenset()

    def places(self) -> Iterator[tuple[str, int, bytes]]:
        """Iterate over (read_as, index, content)."""
        for read_as, contents in self.placed.items():
            yield from ((read_as, index, content) for index, content in enumerate(contents))

    @property
    def contents(self) -> set[bytes]:
        """What it consists of."""
        return {content for _, _, content in self.places()}

    def standing(self, index: int) -> bytes | None:
        """Return what stands at an index, as it is read in its document if it is."""
        found = (self.placed[read_as][index] for read_as in READ_AS if index < len(self.placed.get(read_as, ())))
        return next(found, None)

    def in_order(self) -> list[bytes]:
        """Return what stands at each index."""
        n = max((len(contents) for contents in self.placed.values()), default=0)
        return [content for index in range(n) if (content := self.standing(index)) is not None]

    def to_bytes(self, source: str) -> bytes:
        """Return the record as it is kept, with the name that its key does not say."""
        placed = {read_as: [content.hex() for content in contents] for read_as, contents in self.placed.items()}
        return canonical.dumps([source, placed, sorted(content.hex() for content in self.needed)])

    @classmethod
    def from_bytes(cls, data: bytes | None, source: str) -> Source:
        """Read a record; none is a source that consists of nothing. Raises CorruptError."""
        if data is None:
            return cls()
        try:
            name, placed, needed = _list(data)
            if name != source or not isinstance(placed, dict) or not isinstance(needed, list):
                raise FormatError("it is of another source, or has no such fields")
            by_way = {str(read_as): [bytes.fromhex(c) for c in contents] for read_as, contents in placed.items()}
            return cls(by_way, frozenset(map(bytes.fromhex, needed)))
        except (ValueError, TypeError, FormatError) as error:
            raise CorruptError(f"what the shared catalog says of {source!r} is damaged: {error}; ingest it again") from error


@dataclass(frozen=True)
class Added:
    """A passage that the catalog did not have: its head and its packed tokens."""

    head: Head
    tokens: bytes


@dataclass(frozen=True)
class Change:
    """All that one edit of a source changes.

    Parameters
    ----------
    before, after : Source
        What the source consists of.
    added : mapping
        Passages that are new, by content.
    holders : mapping
        How many sources need each content that the edit touches, after it.
    idle : mapping
        Of those, the ones that no source needs, and where each came from.
    dropped : set of bytes
        Passages that go.
    used_bytes : int
        Bytes of all tokens after it.
    """

    source: str
    before: Source
    after: Source
    added: Mapping[bytes, Added]
    holders: Mapping[bytes, int]
    idle: Mapping[bytes, str]
    dropped: frozenset[bytes]
    used_bytes: int

    @property
    def gone(self) -> list[bytes]:
        """Contents that the source no longer consists of."""
        return sorted(self.before.contents - self.after.contents)

    @property
    def left(self) -> set[tuple[str, int, bytes]]:
        """Places that are empty now, or hold something else."""
        return set(self.before.places()) - set(self.after.places())

    @property
    def taken(self) -> set[tuple[str, int, bytes]]:
        """Places that hold something else than before."""
        return set(self.after.places()) - set(self.before.places())


def holders_after(counts: Mapping[bytes, int], before: Source, after: Source) -> dict[bytes, int]:
    """Return how many sources need each content, where `counts` says how many did."""
    more, less = after.needed - before.needed, before.needed - after.needed
    return {content: max(0, n + (content in more) - (content in less)) for content, n in counts.items()}


def kept_beside(before: Source, placed: Mapping[str, Sequence[bytes]], n_same: int) -> dict[str, Sequence[bytes]]:
    """Return what a source consists of when `placed` is ingested: other ways of reading keep their first `n_same` passages."""
    others = {read_as: contents[:n_same] for read_as, contents in before.placed.items() if read_as not in placed}
    return {**others, **placed}


def n_same_at_start(before: Sequence[bytes], now: Sequence[bytes]) -> int:
    """Return how many passages at the start have the same tokens."""
    return next((i for i, pair in enumerate(zip(before, now, strict=False)) if pair[0] != pair[1]), min(len(before), len(now)))


def with_ancestors(contents: Iterable[bytes], parents: Mapping[bytes, bytes | None]) -> frozenset[bytes]:
    """Return contents with everything that they were read behind, as far as it is known."""
    found: set[bytes] = set()
    for content in contents:
        at: bytes | None = content
        while at is not None and at in parents and at not in found:
            found.add(at)
            at = parents[at]
    return frozenset(found)


def place_to_bytes(source: str, index: int) -> bytes:
    """Return a place as it is sorted: by source, then by index."""
    return source.encode() + b"\0%018d" % index


def place_from_bytes(data: bytes) -> Place:
    """Read a place; raises CorruptError."""
    source, separator, index = data.rpartition(b"\0")
    try:
        if not separator:
            raise ValueError("it has no index")
        return source.decode(), int(index)
    except ValueError as error:
        raise CorruptError(f"a place in the shared catalog is damaged: {error}; ingest its document again") from error


def _list(data: bytes) -> list[object]:
    """Read a canonical JSON list; raises FormatError."""
    value = canonical.loads(b'{"a":' + data + b"}")["a"]
    if not isinstance(value, list):
        raise FormatError(f"a list is needed, got {type(value).__name__}")
    return value
