"""A chunk that is still arriving: parts are handed out as soon as they are complete and verified."""

from __future__ import annotations

import xxhash

from kvstore.core.blob import HEADER_NBYTES, Header, header_nbytes, parse_header
from kvstore.core.errors import ClosedError, CorruptError, IdentityError
from kvstore.core.key import ChunkKey
from kvstore.core.landing import Landing
from kvstore.core.manifest import Manifest, PartSpec
from kvstore.core.pool import SMALL_NBYTES


class PartReader:
    """Implements `BlobReader` over any landing of a whole blob. Thread-safe; copies nothing.

    Every byte is verified before it is handed out: header and manifest here, a part and the padding before it when it is asked for.
    """

    def __init__(self, landing: Landing, key: ChunkKey, tier: str) -> None:
        """Receive and verify header and manifest; raises FormatError, CorruptError or IdentityError."""
        self.landing = landing
        self.tier = tier
        self._is_closed = False
        self._header = land_header(landing)
        if self._header.key != key:
            raise IdentityError(f"asked for chunk {key}, got {self._header.key}")

    @property
    def manifest(self) -> Manifest:
        """The verified manifest."""
        return self._header.manifest

    @property
    def nbytes(self) -> int:
        """Bytes of the whole blob."""
        return self._header.nbytes

    def part(self, index: int) -> memoryview:
        """Return part `index`, waiting for it; raises CorruptError, DeadlineError or TierUnavailableError."""
        if self._is_closed:
            raise ClosedError("the chunk was closed")
        return land_part(self.landing, self._header, index)

    def close(self) -> None:
        """Stop reading; views handed out stay valid. Safe to call again, and from another thread than the one that reads."""
        self._is_closed = True
        self.landing.close()


def land_header(landing: Landing) -> Header:
    """Receive header and manifest of a blob and verify them; raises FormatError or CorruptError."""
    landing.fill(HEADER_NBYTES)
    end = header_nbytes(landing.view[:HEADER_NBYTES])
    landing.fill(end)
    header = parse_header(landing.view[:end])
    if header.nbytes != landing.nbytes:
        raise CorruptError(f"the chunk was announced with {landing.nbytes} B and has {header.nbytes} B")
    return header


def land_part(landing: Landing, header: Header, index: int) -> memoryview:
    """Receive part `index` and verify it and the padding before it; raises CorruptError."""
    spec = header.manifest.parts[index]
    at, end = spec.offset, spec.offset + spec.nbytes
    landing.fill(min(at, landing.nbytes))
    if _digest(landing, at, end) != spec.xxh3:
        raise CorruptError(f"part {spec.group}: {spec.nbytes} B do not match their digest")
    behind = _behind(header, index)
    if behind < at and any(landing.view[behind:at]):
        raise CorruptError(f"the padding before part {index} is not zero")
    return landing.view[at:end]


def _digest(landing: Landing, at: int, end: int) -> str:
    """Receive the bytes from `at` to `end` and return their digest.

    What came beyond a step is digested with it: the next step would find it out of the processor's cache.
    """
    step = landing.step_nbytes
    if end - at <= step:
        landing.fill(end)
        return xxhash.xxh3_128_hexdigest(landing.view[at:end])
    state = xxhash.xxh3_128()
    while at < end:
        landing.fill(min(at + step, end))
        until = min(landing.filled, end)
        state.update(landing.view[at:until])
        at = until
    return state.hexdigest()


def land_all(landing: Landing) -> Header:
    """Receive a whole blob and verify every byte of it while it is still in the cache; raises FormatError or CorruptError."""
    if landing.nbytes <= SMALL_NBYTES:
        landing.fill(landing.nbytes)  # at once, not part by part
    header = land_header(landing)
    for index in range(len(header.manifest.parts)):
        land_part(landing, header, index)
    return header


def _behind(header: Header, index: int) -> int:
    """Return where the part before part `index` ends."""
    if not index:
        return header.parts_offset
    before: PartSpec = header.manifest.parts[index - 1]
    return before.offset + before.nbytes
