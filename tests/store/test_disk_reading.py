"""Large records on disk: read piece by piece, past the page cache where that is faster, with no descriptor left open."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvstore.core.errors import ClosedError, ConfigError, CorruptError, TierUnavailableError
from kvstore.core.landing import PIECE_NBYTES
from kvstore.core.pool import BufferPool
from kvstore.store import direct
from kvstore.store.direct import BLOCK_NBYTES, MIN_NBYTES, MODES, accepts_direct, reads_direct, write_direct, writes_direct
from kvstore.store.disk import DiskTier
from kvstore.store.disk_files import FileLanding
from kvstore.store.files import write_new
from tests.store.chunks import make_record, record_nbytes
from tests.store.reading import read_whole

CAPACITY_BYTES = 64 << 20
LARGE_NBYTES = 5 * PIECE_NBYTES + 12_345


@pytest.fixture(params=MODES)
def tier(request: pytest.FixtureRequest, tmp_path: Path) -> DiskTier:
    """An empty tier in each mode of direct I/O."""
    return DiskTier(tmp_path, CAPACITY_BYTES, direct=request.param)


def stored(tier: DiskTier, nbytes: int = LARGE_NBYTES, seed: int = 1) -> tuple[bytes, bytes]:
    """Put a record and return its key and bytes."""
    key, record = make_record(seed, nbytes)
    tier.put(key, [record])
    return key, record


def begun(tier: DiskTier, key: bytes) -> FileLanding:
    """Begin to read a record that is there."""
    landing = tier.get(key)
    assert isinstance(landing, FileLanding)
    return landing


def path_of(directory: Path, key: bytes) -> Path:
    """Return where a record's file is."""
    return directory / "records" / key.hex()[:2] / key.hex()


def n_open(directory: Path) -> int:
    """Count this process's descriptors of files below a directory, deleted ones included; its lock is one."""
    links = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{entry}"))
        except FileNotFoundError:
            continue  # the one that listed the directory
    return sum(link.startswith(f"{directory}/") for link in links) - 1


def test_a_record_is_read_from_its_front_and_no_further_than_needed(tier: DiskTier) -> None:
    """The first layer group is used while the last one is still on the disk."""
    key, record = stored(tier)
    landing = begun(tier, key)
    assert landing.filled == 0
    landing.fill(100)
    assert (landing.filled, bytes(landing.view[:100])) == (PIECE_NBYTES, record[:100])
    landing.fill(3 * PIECE_NBYTES)
    assert (landing.filled, bytes(landing.view[: landing.filled])) == (3 * PIECE_NBYTES, record[: 3 * PIECE_NBYTES])


def test_a_descriptor_is_closed_with_the_last_byte(tier: DiskTier, tmp_path: Path) -> None:
    key, _ = stored(tier)
    landing = begun(tier, key)
    assert n_open(tmp_path) == 1
    landing.fill(landing.nbytes)
    assert n_open(tmp_path) == 0


def test_a_descriptor_is_closed_with_its_landing(tier: DiskTier, tmp_path: Path) -> None:
    key, _ = stored(tier)
    landing = begun(tier, key)
    landing.fill(1)
    landing.close()
    assert n_open(tmp_path) == 0
    with pytest.raises(ClosedError):
        landing.fill(landing.nbytes)


def test_a_landing_that_is_forgotten_closes_its_descriptor_and_gives_its_memory_back(tmp_path: Path) -> None:
    """A reader whose client went away may drop what it holds without a word; no garbage collection is needed."""
    pool = BufferPool(CAPACITY_BYTES)
    tier = DiskTier(tmp_path, CAPACITY_BYTES, pool=pool)
    key, _ = stored(tier)
    gc.disable()
    try:
        for n in range(20):
            begun(tier, key).fill(n * 1000)
        assert (n_open(tmp_path), pool.lent_nbytes) == (0, 0)
    finally:
        gc.enable()


def test_a_view_of_a_part_keeps_the_memory_and_not_the_descriptor(tmp_path: Path) -> None:
    pool = BufferPool(CAPACITY_BYTES)
    tier = DiskTier(tmp_path, CAPACITY_BYTES, pool=pool)
    key, record = stored(tier)
    landing = begun(tier, key)
    landing.fill(landing.nbytes)
    part = landing.view[1000:2000]
    del landing
    begun(tier, key).fill(LARGE_NBYTES)
    assert (bytes(part), pool.lent_nbytes > 0, n_open(tmp_path)) == (record[1000:2000], True, 0)


def test_a_record_that_is_deleted_while_it_is_read_is_read_to_its_end(tier: DiskTier) -> None:
    """Eviction does not wait for readers."""
    key, record = stored(tier)
    landing = begun(tier, key)
    landing.fill(1)
    assert tier.delete(key)
    landing.fill(landing.nbytes)
    assert bytes(landing.view) == record


def test_a_record_whose_file_is_replaced_while_it_is_read_is_read_to_its_end(tier: DiskTier, tmp_path: Path) -> None:
    """Somebody restores a backup into the directory."""
    key, record = stored(tier)
    landing = begun(tier, key)
    landing.fill(1)
    other = tmp_path / "other"
    other.write_bytes(bytes(len(record)))
    os.replace(other, path_of(tmp_path, key))
    landing.fill(landing.nbytes)
    assert bytes(landing.view) == record


@pytest.mark.parametrize("left", [0, 2 * PIECE_NBYTES, 2 * PIECE_NBYTES + 100])
def test_a_record_whose_file_is_cut_while_it_is_read_is_corrupt(tier: DiskTier, tmp_path: Path, left: int) -> None:
    """What came before stays; the descriptor does not."""
    key, record = stored(tier)
    landing = begun(tier, key)
    landing.fill(PIECE_NBYTES)
    os.truncate(path_of(tmp_path, key), left)
    with pytest.raises(CorruptError, match=f"of {len(record)} B"):
        landing.fill(landing.nbytes)
    assert (bytes(landing.view[:PIECE_NBYTES]), n_open(tmp_path)) == (record[:PIECE_NBYTES], 0)


def test_a_file_that_grows_while_it_is_read_is_corrupt_or_read_as_it_was(tier: DiskTier, tmp_path: Path) -> None:
    """Never is a byte written behind the buffer."""
    key, record = stored(tier)
    landing = begun(tier, key)
    with path_of(tmp_path, key).open("ab") as file:
        file.write(bytes(2 * BLOCK_NBYTES))
    try:
        landing.fill(landing.nbytes)
    except CorruptError:
        assert landing.has_failed
    else:
        assert bytes(landing.view) == record


def test_a_read_that_is_cut_short_goes_on_where_it_stopped(tier: DiskTier, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal may end a read anywhere, also between two blocks."""
    key, record = stored(tier)
    landing, preadv, rng = begun(tier, key), os.preadv, random.Random(0)

    def short(descriptor: int, rooms: Sequence[memoryview], offset: int) -> int:
        count = preadv(descriptor, rooms, offset)
        return rng.randint(1, count)

    monkeypatch.setattr(os, "preadv", short)
    landing.fill(landing.nbytes)
    assert bytes(landing.view) == record


def test_a_failing_read_says_which_tier_and_leaves_no_descriptor(tier: DiskTier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, _ = stored(tier)
    landing = begun(tier, key)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(TierUnavailableError, match="tier disk"):
        landing.fill(1)
    assert n_open(tmp_path) == 0


@pytest.mark.parametrize("border", [BLOCK_NBYTES, MIN_NBYTES, PIECE_NBYTES, 2 << 20, 4 << 20])
@pytest.mark.parametrize("off", [-1, 0, 1, 4095])
def test_records_around_every_border_come_back_bit_for_bit(tmp_path: Path, border: int, off: int) -> None:
    """Blocks, pieces and bounce buffers end there; past the cache each is another way to lose a byte."""
    tier = DiskTier(tmp_path, CAPACITY_BYTES, direct="on")
    total = border + off
    key, record = stored(tier, total - record_nbytes(0))
    assert len(record) == total
    assert path_of(tmp_path, key).read_bytes() == record
    assert read_whole(tier, key) == record


def test_pieces_of_any_cut_are_joined_past_the_cache(tmp_path: Path) -> None:
    rng = random.Random(3)
    pieces = [rng.randbytes(rng.choice([0, 1, 63, 4096, 100_000, 3_000_000])) for _ in range(40)]
    pool = BufferPool(CAPACITY_BYTES)
    if not accepts_direct(tmp_path):
        pytest.skip("this filesystem refuses direct I/O")
    os.close(write_new(tmp_path / "file", pieces, lambda descriptor, all_pieces: write_direct(descriptor, all_pieces, pool)))
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)
    assert pool.lent_nbytes == 0


def test_the_file_is_read_past_the_cache_only_where_that_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read off the descriptor itself, for each mode."""
    if not accepts_direct(tmp_path):
        pytest.skip("this filesystem refuses direct I/O")
    flags: list[bool] = []
    preadv = os.preadv

    def note(descriptor: int, rooms: Sequence[memoryview], offset: int) -> int:
        flags.append(bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT))
        return preadv(descriptor, rooms, offset)

    monkeypatch.setattr(os, "preadv", note)
    for mode in ("on", "off"):
        tier = DiskTier(tmp_path / mode, CAPACITY_BYTES, direct=mode)
        key, _ = stored(tier, PIECE_NBYTES // 2)
        read_whole(tier, key)
    assert flags == [True, False]


@pytest.mark.parametrize(
    ("mode", "nbytes", "cached", "is_past"),
    [
        ("auto", MIN_NBYTES, 0, True),
        ("auto", MIN_NBYTES, MIN_NBYTES // 2 - 4096, True),
        ("auto", MIN_NBYTES, MIN_NBYTES // 2, False),
        ("auto", MIN_NBYTES, None, False),
        ("auto", MIN_NBYTES - 1, 0, False),
        ("on", MIN_NBYTES, MIN_NBYTES, True),
        ("on", MIN_NBYTES - 1, 0, False),
        ("off", MIN_NBYTES, 0, False),
    ],
)
def test_a_read_goes_past_the_cache_when_the_cache_does_not_hold_it(
    monkeypatch: pytest.MonkeyPatch, mode: str, nbytes: int, cached: int | None, is_past: bool
) -> None:
    monkeypatch.setattr(direct, "cached_nbytes", lambda descriptor: cached)
    assert reads_direct(mode, -1, nbytes) == is_past


@pytest.mark.parametrize(
    ("mode", "is_synced", "is_past"), [("auto", True, True), ("auto", False, False), ("on", False, True), ("off", True, False)]
)
def test_a_write_goes_past_the_cache_when_the_device_is_waited_for(mode: str, is_synced: bool, is_past: bool) -> None:
    assert writes_direct(mode, MIN_NBYTES, is_synced=is_synced) == is_past
    assert not writes_direct(mode, MIN_NBYTES - 1, is_synced=is_synced)


def test_what_the_cache_holds_is_told_without_reading(tmp_path: Path) -> None:
    """A file that was just written lies in the cache whole."""
    path = tmp_path / "file"
    path.write_bytes(bytes(PIECE_NBYTES))
    with path.open("rb") as file:
        assert direct.cached_nbytes(file.fileno()) in (PIECE_NBYTES, None), "None: a kernel before 6.5"
        assert file.tell() == 0


def test_a_system_that_does_not_tell_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another kernel the number may mean another call."""
    monkeypatch.setattr(direct, "_system", lambda: None)
    assert direct.cached_nbytes(-1) is None


def test_a_filesystem_that_refuses_is_used_through_the_cache_with_one_line_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Asked for or not, direct I/O is never worth an error."""

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(direct, "pass_cache", refuse)
    tier = DiskTier(tmp_path, CAPACITY_BYTES, direct="on")
    for seed in range(3):
        key, record = stored(tier, LARGE_NBYTES, seed)
        assert read_whole(tier, key) == record
    assert [line.message.split(": ")[1] for line in caplog.records] == ["no direct I/O, everything goes through the page cache"]
    assert list((tmp_path / "fresh").iterdir()) == []


def test_a_mode_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="auto, on or off, got 'sometimes'"):
        DiskTier(tmp_path, CAPACITY_BYTES, direct="sometimes")


def test_a_file_of_another_length_takes_no_memory(tmp_path: Path) -> None:
    """Sizes are checked before memory is taken."""
    pool = BufferPool(CAPACITY_BYTES)
    tier = DiskTier(tmp_path, CAPACITY_BYTES, pool=pool)
    key, record = stored(tier)
    os.truncate(path_of(tmp_path, key), 8 << 30)
    with pytest.raises(CorruptError, match=f"has {8 << 30} B, {len(record)} B were written"):
        tier.get(key)
    assert (n_open(tmp_path), pool.lent_nbytes) == (0, 0)
