"""The disk tier: what a crash, a full disk or a stranger leaves behind is never taken for a record."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvstore.core.errors import CapacityError, ConfigError, CorruptError, TierUnavailableError
from kvstore.store.disk import DiskTier
from kvstore.store.quarantine import MAX_FILES
from tests.store.chunks import make_record, record_nbytes
from tests.store.reading import read_whole

CAPACITY_BYTES = 1 << 20


def path_of(directory: Path, key: bytes) -> Path:
    """Return where a record's file is."""
    return directory / "records" / key.hex()[:2] / key.hex()


def stored(directory: Path, seed: int, nbytes: int = 64) -> tuple[bytes, bytes]:
    """Store a record as of `seed` nanoseconds and close the tier; return its key and bytes."""
    tier = DiskTier(directory, CAPACITY_BYTES)
    key, record = make_record(seed, nbytes)
    tier.put(key, [record])
    tier.close()
    os.utime(path_of(directory, key), ns=(seed, seed))
    return key, record


def quarantined(directory: Path) -> list[Path]:
    """Return the files in quarantine."""
    return sorted((directory / "quarantine").iterdir())


def test_a_restart_finds_every_record(tmp_path: Path) -> None:
    """The index is rebuilt from the files, bytes in use included, oldest first."""
    records = [stored(tmp_path, seed, 100 * seed) for seed in range(5)]
    tier = DiskTier(tmp_path, CAPACITY_BYTES)
    assert [item.key for item in tier.scan()] == [key for key, _ in records]
    assert tier.used_bytes == sum(len(record) for _, record in records)
    assert [read_whole(tier, key) for key, _ in records] == [record for _, record in records]


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b"X" + b[1:], lambda b: b"", lambda b: b[:90]], ids=range(5)
)
def test_a_restart_trusts_no_partial_or_foreign_record(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """A wrong length or head is enough to put the file away; the rest is verified when it is read."""
    key, record = stored(tmp_path, 1)
    path_of(tmp_path, key).write_bytes(damage(record))
    tier = DiskTier(tmp_path, CAPACITY_BYTES)
    assert (read_whole(tier, key), list(tier.scan()), len(quarantined(tmp_path))) == (None, [], 1)


def test_a_restart_refuses_a_record_under_another_name(tmp_path: Path) -> None:
    """Somebody copied a file to the key of another tenant."""
    key, record = stored(tmp_path, 1)
    other = bytes(32)
    path_of(tmp_path, other).parent.mkdir()
    path_of(tmp_path, other).write_bytes(record)
    tier = DiskTier(tmp_path, CAPACITY_BYTES)
    assert [item.key for item in tier.scan()] == [key]


def test_a_restart_follows_no_link(tmp_path: Path) -> None:
    """A link in the directory could make the store read or remove anything."""
    key, record = make_record(2)
    outside = tmp_path / "outside"
    outside.write_bytes(record)
    path_of(tmp_path / "d", key).parent.mkdir(parents=True)
    path_of(tmp_path / "d", key).symlink_to(outside)
    tier = DiskTier(tmp_path / "d", CAPACITY_BYTES)
    assert read_whole(tier, key) is None
    assert outside.read_bytes() == record


def test_a_restart_removes_unfinished_files(tmp_path: Path) -> None:
    """What was being written when the process died is nobody's record."""
    stored(tmp_path, 1)
    (tmp_path / "fresh" / "abc").write_bytes(b"half a record")
    DiskTier(tmp_path, CAPACITY_BYTES)
    assert list((tmp_path / "fresh").iterdir()) == []


def test_a_file_that_changed_length_or_vanished_is_corrupt(tmp_path: Path) -> None:
    """The tier promises the length that was stored."""
    tier = DiskTier(tmp_path, CAPACITY_BYTES)
    for seed in (1, 2):
        key, record = make_record(seed)
        tier.put(key, [record])
    path_of(tmp_path, key).write_bytes(record[:-1])
    with pytest.raises(CorruptError, match=f"has {len(record) - 1} B, {len(record)} B were written"):
        read_whole(tier, key)
    path_of(tmp_path, key).unlink()
    with pytest.raises(CorruptError, match="is gone"):
        read_whole(tier, key)
    assert tier.quarantine(key)
    assert read_whole(tier, key) is None


def test_the_quarantine_is_bounded_and_counts_as_used(tmp_path: Path) -> None:
    """Damaged files are kept to be looked at, the newest few, and never beyond the capacity."""
    tier = DiskTier(tmp_path, CAPACITY_BYTES)
    for seed in range(MAX_FILES + 10):
        key, record = make_record(seed)
        tier.put(key, [record])
        tier.quarantine(key)
    assert len(quarantined(tmp_path)) == MAX_FILES
    assert tier.used_bytes == MAX_FILES * len(record)
    tier.close()
    assert DiskTier(tmp_path, CAPACITY_BYTES).used_bytes == MAX_FILES * len(record)


def test_a_damaged_file_that_is_too_large_to_keep_is_removed(tmp_path: Path) -> None:
    """The quarantine has a twentieth of the capacity."""
    tier = DiskTier(tmp_path, CAPACITY_BYTES)
    key, record = make_record(1, CAPACITY_BYTES // 10)
    tier.put(key, [record])
    tier.quarantine(key)
    assert (quarantined(tmp_path), tier.used_bytes) == ([], 0)


def test_files_and_directories_are_for_their_owner_only(tmp_path: Path) -> None:
    """What a model read may be private."""
    stored(tmp_path / "d", 1)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "d").rglob("*") if path.is_dir()}
    assert modes == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "d").rglob("*") if path.is_file()} == {0o600}


def test_a_second_tier_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    """Two indexes over one set of files would both be wrong; the message names the process to stop."""
    first = DiskTier(tmp_path, CAPACITY_BYTES)
    with pytest.raises(TierUnavailableError, match=f"in use by process {os.getpid()}"):
        DiskTier(tmp_path, CAPACITY_BYTES)
    first.close()
    DiskTier(tmp_path, CAPACITY_BYTES)


def test_a_second_process_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    """The lock is the system's, so a killed process leaves none behind."""
    code = f"from pathlib import Path\nfrom kvstore.store.disk import DiskTier\nDiskTier(Path({str(tmp_path)!r}), 1000)\nprint('open')"
    first = DiskTier(tmp_path, CAPACITY_BYTES)
    refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "in use by process" in refused.stderr
    first.close()
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "open\n"


@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, CapacityError), (errno.EIO, TierUnavailableError)])
@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("nbytes", [64, 400_000], ids=["small", "past the page cache"])
def test_a_failing_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nbytes: int, call: str, number: int, error: type[Exception]
) -> None:
    """Full or broken, at any step: a clear error, no file, no bytes counted, and the next put works."""
    tier = DiskTier(tmp_path, CAPACITY_BYTES)
    tier.put(*(lambda pair: (pair[0], [pair[1]]))(make_record(0)))
    key, record = make_record(1, nbytes)
    used = tier.used_bytes

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as broken:
        broken.setattr(os, call, fail)
        with pytest.raises(error):
            tier.put(key, [record])
    assert (read_whole(tier, key), tier.used_bytes, list((tmp_path / "fresh").iterdir())) == (None, used, [])
    tier.put(key, [record])
    assert read_whole(tier, key) == record


def test_a_record_is_synced_before_it_has_its_name_and_its_name_before_the_put_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this order a power loss leaves either no name or a whole record; the first directory is the one that names the shard."""
    tier = DiskTier(tmp_path, CAPACITY_BYTES)
    key, record = make_record(1)
    seen: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        seen.append("sync directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        fsync(descriptor)

    def note_replace(source: Path, target: Path) -> None:
        seen.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    tier.put(key, [record])
    assert seen == ["sync file", "sync directory", "rename", "sync directory"]


def test_without_fsync_the_tier_does_not_call_itself_durable(tmp_path: Path) -> None:
    """A durable put must not be acknowledged on a promise that the setting took back."""
    assert not DiskTier(tmp_path / "a", 1000, fsync="never").info.is_durable
    assert DiskTier(tmp_path / "b", 1000, fsync="always").info.is_durable
    with pytest.raises(ConfigError, match="always or never, got 'sometimes'"):
        DiskTier(tmp_path / "c", 1000, fsync="sometimes")


def test_a_start_with_more_than_the_capacity_says_so(tmp_path: Path) -> None:
    """The capacity may have been lowered; what is above it is the store's to evict."""
    for seed in range(3):
        stored(tmp_path, seed)
    tier = DiskTier(tmp_path, 2 * record_nbytes())
    assert tier.used_bytes == 3 * record_nbytes()
    with pytest.raises(CapacityError, match="0 B are free"):
        tier.put(*(lambda pair: (pair[0], [pair[1]]))(make_record(9)))
