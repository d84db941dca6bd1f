"""Which passages are known, per tenant: their tokens outlive every cached chunk, so a miss can always be computed.

A passage stands at a place (source and index), once for each way in which it was ingested. What stands nowhere any more, because its
document was edited, can still be asked for by its id until the catalog is full or the document is forgotten.
"""

from __future__ import annotations

import re
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

from kvstore.core.errors import CapacityError, CorruptError, InvalidInputError, NotFoundError
from kvstore.core.key import DIGEST_NBYTES
from kvstore.core.units import format_nbytes
from kvworker.ingest.passages import Known, Passage, Reading, readings_of

Place = tuple[str, int]
"""A source and an index in it."""
_ID = re.compile(r"[0-9a-f]{8,64}")
_PLACE = re.compile(r"(?P<source>.+)#(?P<index>[0-9]{1,18})", re.DOTALL)  # 18 digits fit every integer of a database
TOKEN_NBYTES = 4


class Catalog(ABC):
    """Passages of one model; a tenant's tokens take at most `capacity_bytes`, 4 B each. Thread-safe; raises nothing but KVError."""

    def __init__(self, namespace: bytes, capacity_bytes: int) -> None:
        self._namespace, self._capacity_bytes = namespace, capacity_bytes

    @abstractmethod
    def add(self, tenant: str, source: str, placed: Mapping[str, Sequence[Passage]], behind: Iterable[Passage] = ()) -> list[bytes]:
        """Say which passages a source consists of now, in order, by how they are read; `behind` gives others that these were read behind.

        How the source was ingested otherwise stays known up to the first passage whose text changed. Returns the contents that the source
        no longer consists of. Raises CapacityError, with nothing changed, if the tokens do not fit beside those of other documents.
        """

    @abstractmethod
    def forget(self, tenant: str, source: str) -> list[bytes]:
        """Drop a source and its passages, as they are and as they ever were; return the contents that it consisted of.

        Passages that other sources share, and those that passages of others were read behind, stay.
        """

    @abstractmethod
    def listing(self, tenant: str, source: str = "", limit: int = 1000) -> list[Passage]:
        """Return passages in the order of their sources, of one source if it is named; each once, as it was read in its document."""

    @abstractmethod
    def close(self) -> None:
        """Let go of where they are kept; a later call raises ClosedError."""

    def find(self, tenant: str, name: str) -> Passage:
        """Return the passage that an identity of 8 to 64 hex digits, or "source#index", names: the latter as it was read in its document.

        Raises NotFoundError, or InvalidInputError when the name is malformed or stands for several passages.
        """
        if _ID.fullmatch(name):
            passage = self._find_by_start(tenant, name)
            return self._of_contents(tenant, [passage.content]).get(passage.content, passage)
        place = _place(name)
        if place is None:
            raise InvalidInputError(f"{name!r} names no passage; write 8 to 64 hex digits of its identity, or source#index")
        if place not in (standing := self._standing(tenant, [place])):
            raise NotFoundError(f"no passage {name!r} is known here; ingest {place[0]!r} first")
        return standing[place]

    def readings(self, tenant: str, names: Sequence[str], read_as: str) -> list[tuple[Passage, tuple[Reading, ...]]]:
        """Return the passages that names stand for, each with the readings of it that may be used, the best first; see `readings_of`."""
        places = {name: place for name in names if (place := _place(name)) is not None}
        standing = self._standing(tenant, list(dict.fromkeys(places.values())))
        found = {name: standing[place] for name, place in places.items() if place in standing}
        contents = {name: bytes.fromhex(name) for name in names if len(name) == 2 * DIGEST_NBYTES and _ID.fullmatch(name)}
        known_by_id = self._of_contents(tenant, list(dict.fromkeys(contents.values())))
        found |= {name: known_by_id[content] for name, content in contents.items() if content in known_by_id}
        named = [found.get(name) or self.find(tenant, name) for name in names]
        alone = [p.alone(self._namespace) for p in named]
        known = self._known(tenant, [p.content for p in (*named, *alone)])
        return [(p, readings_of(p, a, read_as, known)) for p, a in zip(named, alone, strict=True)]

    def chain(self, tenant: str, passage: Passage) -> list[Passage]:
        """Return the passages that this one was read behind, first to last, and itself."""
        found = [passage]
        while (parent := found[-1].parent) is not None:
            found.append(self._find_by_start(tenant, parent.hex()))
        return found[::-1]

    def _find_by_start(self, tenant: str, digits: str) -> Passage:
        """Return the one passage whose identity starts with these hex digits."""
        found = self._with_start(tenant, digits)
        if not found:
            raise NotFoundError(f"no passage {digits!r} is known here; ingest it first, or list what is known with `larder ls`")
        if len(found) > 1:
            raise InvalidInputError(f"{digits!r} stands for several passages; write more digits")
        return found[0]

    @abstractmethod
    def _with_start(self, tenant: str, digits: str) -> list[Passage]:
        """Return at most two passages whose identity starts with these hex digits."""

    @abstractmethod
    def _standing(self, tenant: str, places: Sequence[Place]) -> dict[Place, Passage]:
        """Return the passages that stand at different places, as they were read in their documents where they were."""

    @abstractmethod
    def _of_contents(self, tenant: str, contents: Sequence[bytes]) -> dict[bytes, Passage]:
        """Return those of different passages that are known, each with its first place; what stands nowhere keeps where it came from."""

    @abstractmethod
    def _known(self, tenant: str, contents: Sequence[bytes]) -> Known:
        """Return which of these contents stand somewhere, and how they are read there."""


def _place(name: str) -> Place | None:
    """Return the place that a name gives, or None where it gives none."""
    found = _PLACE.fullmatch(name)
    return (found["source"], int(found["index"])) if found else None


def pack(token_ids: Sequence[int]) -> bytes:
    """Return token ids as little-endian uint32."""
    return struct.pack(f"<{len(token_ids)}I", *token_ids)


def unpack(tokens: bytes) -> tuple[int, ...]:
    """Read what `pack` wrote; raises CorruptError."""
    if len(tokens) % TOKEN_NBYTES:
        raise CorruptError(f"a passage in the catalog has {len(tokens)} B of tokens, which are {TOKEN_NBYTES} B each; ingest it again")
    return struct.unpack(f"<{len(tokens) // TOKEN_NBYTES}I", tokens)


def too_many(source: str, used_bytes: int, capacity_bytes: int) -> CapacityError:
    """Return the error for a document whose tokens do not fit."""
    return CapacityError(
        f"the tokens of {source!r} and of the documents known before take {format_nbytes(used_bytes)}, more than the"
        f" {format_nbytes(capacity_bytes)} of worker.catalog_bytes; forget documents or raise it"
    )
