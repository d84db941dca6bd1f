"""Reading a chunk that is still arriving: each part as soon as it is there, nothing unverified, nothing before it is needed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvstore.core.blob import HEADER_NBYTES, Header, verify_blob
from kvstore.core.errors import ClosedError, CorruptError, DeadlineError, FormatError, IdentityError, TierUnavailableError
from kvstore.core.key import ChunkKey
from kvstore.core.landing import Copied, Landed, Landing
from kvstore.core.reading import PartReader, land_all
from tests.store.chunks import make_chunk

_, META, BLOB = make_chunk(1, 65, n_parts=3)  # 63 B of padding between the parts
HEADER = verify_blob(BLOB)
DAMAGE = (CorruptError, FormatError, IdentityError)


class Dribble(Landing):
    """Receives a few bytes at a time; behind `end` nothing more comes."""

    def __init__(self, data: bytes, step_nbytes: int = 7, end: int | None = None, then: Exception | None = None) -> None:
        super().__init__(memoryview(bytearray(len(data))))
        self._data, self._step_nbytes, self._then = data, step_nbytes, then
        self._available = len(data) if end is None else end

    def _receive(self, room: memoryview) -> int:
        if self.filled >= self._available:
            raise self._then or CorruptError("no more")
        count = min(self._step_nbytes, self._available - self.filled)
        room[:count] = self._data[self.filled : self.filled + count]
        return count


def parts_of(blob: bytes, header: Header = HEADER) -> list[bytes]:
    """Return the parts of a chunk as they were built."""
    return [blob[part.offset : part.offset + part.nbytes] for part in header.manifest.parts]


def flipped(at: int, bit: int) -> bytes:
    """Return the chunk with one bit flipped."""
    return BLOB[:at] + bytes([BLOB[at] ^ 1 << bit]) + BLOB[at + 1 :]


def region(at: int) -> int:
    """Return the part that a byte belongs to, with the padding before it; -1 for header and manifest."""
    if at < HEADER.parts_offset:
        return -1
    return next(index for index, part in enumerate(HEADER.manifest.parts) if at < part.offset + part.nbytes)


@pytest.mark.parametrize("step_nbytes", [1, 47, 64, 10_000])
def test_every_part_comes_back_however_the_bytes_arrive(step_nbytes: int) -> None:
    """In order and out of order, and again."""
    reader = PartReader(Dribble(BLOB, step_nbytes), META.chunk, "far")
    assert (reader.manifest, reader.nbytes, reader.tier) == (HEADER.manifest, len(BLOB), "far")
    assert [reader.part(index) for index in (2, 0, 1, 0)] == [parts_of(BLOB)[index] for index in (2, 0, 1, 0)]
    assert reader.part(0).readonly


def test_a_flipped_bit_anywhere_is_refused_with_the_part_it_belongs_to_and_no_other() -> None:
    """Exhaustive over one chunk: header, manifest, padding and parts."""
    for at in range(len(BLOB)):
        for bit in range(8):
            landing, damaged = Landed(memoryview(flipped(at, bit))), region(at)
            if damaged < 0:
                with pytest.raises(DAMAGE):
                    PartReader(landing, META.chunk, "far")
                continue
            reader = PartReader(landing, META.chunk, "far")
            with pytest.raises(CorruptError):
                reader.part(damaged)
            sound = [index for index in range(3) if index != damaged]
            assert [reader.part(index) for index in sound] == [parts_of(BLOB)[index] for index in sound]


def test_reading_all_of_a_chunk_refuses_what_reading_its_parts_would() -> None:
    """One flip in each byte; the two ways to verify a chunk agree with the third, which needs it whole."""
    for at in range(len(BLOB)):
        for verify in (lambda data: land_all(Copied(memoryview(data), memoryview(bytearray(len(data))))), verify_blob):
            with pytest.raises(DAMAGE):
                verify(flipped(at, at % 8))
    assert land_all(Dribble(BLOB)) == verify_blob(BLOB) == HEADER


def test_a_chunk_that_ends_early_gives_the_parts_that_are_whole() -> None:
    """At every length: a part is right or an error, never short."""
    for end in range(len(BLOB)):
        landing = Dribble(BLOB, end=end)
        if end < HEADER.parts_offset:
            with pytest.raises(CorruptError):
                PartReader(landing, META.chunk, "far")
            continue
        reader = PartReader(landing, META.chunk, "far")
        for index, part in enumerate(HEADER.manifest.parts):
            if part.offset + part.nbytes <= end:
                assert reader.part(index) == parts_of(BLOB)[index]
            else:
                with pytest.raises(CorruptError):
                    reader.part(index)


@pytest.mark.parametrize("nbytes", [0, 1, HEADER_NBYTES - 1, HEADER_NBYTES, HEADER.parts_offset, len(BLOB) - 1, len(BLOB) + 1])
def test_a_chunk_of_another_length_than_announced_is_refused(nbytes: int) -> None:
    """Before anything of it is handed out."""
    with pytest.raises(DAMAGE):
        PartReader(Landed(memoryview(BLOB.ljust(nbytes, b"\0")[:nbytes])), META.chunk, "far")


def test_nothing_behind_a_part_is_received_to_read_it() -> None:
    """The first layer group is used while the last one travels: here nothing behind it will ever come."""
    ends = [part.offset + part.nbytes for part in HEADER.manifest.parts]
    landing = Dribble(BLOB, step_nbytes=1, end=ends[0], then=TierUnavailableError("down"))
    reader = PartReader(landing, META.chunk, "far")
    assert landing.filled == HEADER.parts_offset
    assert (reader.part(0), landing.filled) == (parts_of(BLOB)[0], ends[0])
    with pytest.raises(TierUnavailableError):
        reader.part(1)
    assert reader.part(0) == parts_of(BLOB)[0]


def test_what_comes_with_a_step_is_digested_with_it() -> None:
    """Later the processor's cache would not have it any more: nothing that is there is asked for a second time."""
    asked: list[tuple[int, int]] = []  # the end that was asked for, and what was there

    class Ranges(Dribble):
        """Brings 40 B at a time, digested in steps of 16 B."""

        step_nbytes = 16

        def fill(self, end: int) -> None:
            asked.append((end, self.filled))
            super().fill(end)

    reader = PartReader(Ranges(BLOB, 40), META.chunk, "far")
    asked.clear()
    assert reader.part(0) == parts_of(BLOB)[0]
    _, _, *later = asked  # the first step may have come with what stands before the part
    assert later
    assert all(end > filled for end, filled in later)


def test_another_chunk_than_the_one_asked_for_is_refused() -> None:
    """Right bytes of the wrong chunk would give wrong words."""
    other: ChunkKey = make_chunk(2)[1].chunk
    with pytest.raises(IdentityError, match="asked for chunk"):
        PartReader(Dribble(BLOB), other, "far")


def test_a_reader_that_closes_in_the_middle_keeps_what_it_has() -> None:
    """And gets nothing more, also of what has arrived."""
    landing = Dribble(BLOB)
    reader = PartReader(landing, META.chunk, "far")
    first = reader.part(0)
    reader.close()
    reader.close()
    assert first == parts_of(BLOB)[0]
    for index in range(3):
        with pytest.raises(ClosedError):
            reader.part(index)
    assert landing.filled < len(BLOB)


def test_a_deadline_ends_the_reading_of_a_part() -> None:
    """What is there already can still be had."""
    landing = Dribble(BLOB)
    reader = PartReader(landing, META.chunk, "far")
    first = reader.part(0)
    landing.deadline = 0.0
    with pytest.raises(DeadlineError):
        reader.part(2)
    assert reader.part(0) == first


@pytest.mark.parametrize("make", [lambda: Dribble(BLOB, 4096), lambda: Landed(memoryview(BLOB)).tail(0)])
def test_parts_are_views_of_the_landing(make: Callable[[], Landing]) -> None:
    """A reader copies nothing."""
    landing = make()
    reader = PartReader(landing, META.chunk, "far")
    assert {id(reader.part(index).obj) for index in range(3)} == {id(landing.view.obj)}
