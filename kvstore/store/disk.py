"""Records as files, one each, in a directory that one process owns.

    DIR/lock                        taken by the process that uses the directory
    DIR/records/ab/abcd...          one record, named by its storage key in hex
    DIR/fresh/...                   records being written; emptied at start
    DIR/quarantine/...              damaged or foreign files, the newest few

A record is written to `fresh`, synced, renamed into `records`, and the directory synced: at every moment a name in `records` is a whole
record or does not exist. What a start finds is trusted for its name, length and head only; whoever reads a record verifies it.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from kvstore.core.blob import Buffer
from kvstore.core.errors import CapacityError, ConfigError, CorruptError
from kvstore.core.landing import Landing
from kvstore.core.pool import BufferPool
from kvstore.store.direct import MODES, accepts_direct, write_all, write_direct, writes_direct
from kvstore.store.disk_files import io_errors, open_record, read_head
from kvstore.store.files import DIRECTORY_MODE, lock_directory, make_directory, sync_directory, write_new
from kvstore.store.quarantine import Quarantine
from kvstore.store.record import parse_head
from kvstore.store.tier import Listed, Tier, TierInfo

_POOL_BYTES = 128 << 20


class _Index(dict[bytes, Listed]):
    """The visible records by storage key, with the sum of their bytes."""

    nbytes = 0

    def add(self, listed: Listed) -> None:
        self[listed.key] = listed
        self.nbytes += listed.nbytes

    def take(self, key: bytes) -> Listed | None:
        listed = self.pop(key, None)
        self.nbytes -= listed.nbytes if listed else 0
        return listed


class DiskTier(Tier):
    """Keeps records in files that survive the process.

    Copies: put one into the page cache or into aligned memory; get one out of the page cache, or none past it. Memory beyond the pool's is
    bounded by what is in flight: a record per landing and 2 MiB per put. A landing that outlives its record keeps the file's bytes on the
    disk, uncounted, until it is whole or closed. Files and directories are readable by their owner only. A full or failing disk raises
    CapacityError or TierUnavailableError and leaves nothing behind.

    Parameters
    ----------
    directory : Path
        Created when missing. A second process, or a second tier, that opens it gets TierUnavailableError.
    capacity_bytes : int
        Most bytes of records and quarantined files, those found at start included. When a start finds more, `used_bytes` says so and puts
        are refused until enough was deleted.
    fsync : str
        "always": a put returns after the record is on the device, so it survives a power loss. "never": a put returns when the system has
        the bytes; they survive the process, and the tier does not call itself durable.
    direct : str
        Which records of 256 KiB and more go past the system's page cache. "auto": reads of what the cache doesn't hold, and writes with
        fsync "always". "on": all, so that the cache's memory is left to others. "off": none. Where the filesystem refuses, none do.
    pool : BufferPool or None
        Where the memory of landings comes from; None takes a pool that keeps 128 MiB.
    """

    def __init__(
        self,
        directory: Path,
        capacity_bytes: int,
        fsync: str = "always",
        name: str = "disk",
        *,
        direct: str = "auto",
        pool: BufferPool | None = None,
    ) -> None:
        if fsync not in ("always", "never"):
            raise ConfigError(f"tier {name}: fsync must be always or never, got {fsync!r}")
        if direct not in MODES:
            raise ConfigError(f"tier {name}: direct must be auto, on or off, got {direct!r}")
        self._pool = BufferPool(_POOL_BYTES) if pool is None else pool
        self._info = TierInfo(name, capacity_bytes, is_durable=fsync == "always")
        self._records, self._fresh = directory / "records", directory / "fresh"
        self._lock = threading.Lock()
        self._index = _Index()
        self._shards: set[Path] = set()  # whose names are durable
        self._writing_bytes = 0
        with io_errors(self._info.name):
            for path in (directory, self._records, self._fresh):
                make_directory(path)
            self._owner = lock_directory(directory)
            try:
                self._quarantine = Quarantine(directory / "quarantine", capacity_bytes // 20)
                self._recover()
                self._direct = direct if direct != "off" and accepts_direct(self._fresh) else "off"
            except OSError:
                os.close(self._owner)
                raise

    @property
    def info(self) -> TierInfo:
        return self._info

    @property
    def used_bytes(self) -> int:
        """Bytes of all records, of those being written, and of the quarantine."""
        with self._lock:
            return self._count_bytes()

    def get(self, key: bytes) -> Landing | None:
        """Begin to read the record into memory of the pool; a file whose length changed, or that is gone, raises CorruptError."""
        with self._lock:
            listed = self._index.get(key)
        if listed is None:
            return None
        with io_errors(self._info.name):
            try:
                return open_record(self._info.name, self._path(key), listed.nbytes, self._pool, self._direct)
            except FileNotFoundError as error:
                if key not in self._index:
                    return None  # deleted between the look into the index and the read
                raise CorruptError(f"tier {self._info.name}: the file of record {key.hex()[:16]} is gone") from error

    def put(self, key: bytes, pieces: Sequence[Buffer]) -> None:
        """Write the record and make it visible; with fsync "always" it is on the device when this returns."""
        listed = Listed(key, sum(len(piece) for piece in pieces), parse_head(pieces[0]).meta)
        with self._lock:
            if key in self._index:
                return
            self._reserve(listed.nbytes)
        fresh = self._fresh / secrets.token_hex(16)
        try:
            with io_errors(self._info.name):
                self._write(fresh, pieces, listed.nbytes)
                self._make_shard(self._path(key).parent)
        except BaseException:
            fresh.unlink(missing_ok=True)
            with self._lock:
                self._writing_bytes -= listed.nbytes
            raise
        with self._lock, io_errors(self._info.name):
            self._publish(fresh, listed)
        if self._info.is_durable:
            with io_errors(self._info.name):
                sync_directory(self._path(key).parent)

    def delete(self, key: bytes) -> bool:
        """Remove the record: out of sight under the lock, then from the disk without it."""
        gone = self._fresh / secrets.token_hex(16)
        with self._lock, io_errors(self._info.name):
            listed = self._index.take(key)
            if listed is None:
                return False
            with suppress(FileNotFoundError):
                os.replace(self._path(key), gone)
            self._writing_bytes += listed.nbytes  # until they are off the disk
        try:
            with io_errors(self._info.name):
                gone.unlink(missing_ok=True)
        finally:
            with self._lock:
                self._writing_bytes -= listed.nbytes
        return True

    def find(self, keys: Sequence[bytes]) -> list[int | None]:
        with self._lock:
            found = [self._index.get(key) for key in keys]
        return [None if listed is None else listed.nbytes for listed in found]

    def scan(self) -> Iterator[Listed]:
        with self._lock:
            return iter(list(self._index.values()))

    def quarantine(self, key: bytes) -> bool:
        """Move the damaged file out of sight; the newest few are kept, within the capacity."""
        with self._lock, io_errors(self._info.name):
            if self._index.take(key) is None:
                return False
            self._quarantine.take(self._path(key))
        return True

    def close(self) -> None:
        with self._lock:
            self._index = _Index()
            owner, self._owner = self._owner, -1
        if owner >= 0:
            os.close(owner)

    def _path(self, key: bytes) -> Path:
        name = key.hex()
        return self._records.joinpath(name[:2], name)

    def _reserve(self, nbytes: int) -> None:
        """Count bytes before they are written, so that concurrent puts cannot exceed the capacity. Called with the lock held."""
        free = self._info.capacity_bytes - self._count_bytes()
        if nbytes > free:
            raise CapacityError(f"tier {self._info.name}: {nbytes} B do not fit, {max(free, 0)} B are free; raise its capacity")
        self._writing_bytes += nbytes

    def _count_bytes(self) -> int:
        return self._index.nbytes + self._writing_bytes + self._quarantine.used_bytes

    def _write(self, fresh: Path, pieces: Sequence[Buffer], nbytes: int) -> None:
        """Write a file that nobody looks for yet."""
        is_direct = writes_direct(self._direct, nbytes, is_synced=self._info.is_durable)
        descriptor = write_new(fresh, pieces, partial(write_direct, pool=self._pool) if is_direct else write_all)
        try:
            if self._info.is_durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _make_shard(self, shard: Path) -> None:
        """Create a record's directory at its first use. Who finds it there must not rely on another thread to make its name durable."""
        if shard not in self._shards:
            shard.mkdir(DIRECTORY_MODE, exist_ok=True)
            if self._info.is_durable:
                sync_directory(self._records)
            self._shards.add(shard)

    def _publish(self, fresh: Path, listed: Listed) -> None:
        """Give a fresh file its final name, unless another writer of the same key was first. Called with the lock held."""
        self._writing_bytes -= listed.nbytes
        if listed.key in self._index:
            fresh.unlink()
            return
        try:
            os.replace(fresh, self._path(listed.key))
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        self._index.add(listed)

    def _recover(self) -> None:
        """Rebuild the index from the files, oldest first; remove unfinished ones and take anything that is not a record out of sight."""
        for path in self._fresh.iterdir():
            path.unlink()
        found: list[tuple[int, Listed]] = []
        for shard in self._records.iterdir():
            for path in [shard] if not shard.is_dir() or shard.is_symlink() else shard.iterdir():
                found += self._recover_file(path)
        for _, listed in sorted(found, key=lambda pair: pair[0]):
            self._index.add(listed)

    def _recover_file(self, path: Path) -> list[tuple[int, Listed]]:
        """Return when a record was written and what it is if its name, length and head agree; else take the file out of sight."""
        head_and_time = read_head(path)
        if head_and_time is None or path != self._path(head_and_time[0].storage_key):
            self._quarantine.take(path)
            return []
        head, time_ns = head_and_time
        return [(time_ns, Listed(head.storage_key, head.nbytes, head.meta))]
