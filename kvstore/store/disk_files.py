"""Reading record files, and what the system's errors mean for a tier."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvstore.core.errors import CapacityError, CorruptError, KVError, TierUnavailableError
from kvstore.core.landing import PIECE_NBYTES, Landing
from kvstore.core.pool import BufferPool
from kvstore.store.direct import BLOCK_NBYTES, pass_cache, reads_direct, round_up, use_cache
from kvstore.store.record import HEAD_NBYTES, RecordHead, meta_end, parse_head

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def io_errors(tier: str) -> Iterator[None]:
    """Turn an OSError into CapacityError when the disk is full and TierUnavailableError otherwise."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise CapacityError(f"tier {tier}: the disk is full ({error}); free some space or lower the tier's capacity") from error
        raise TierUnavailableError(f"tier {tier}: {error}") from error


class FileLanding(Landing):
    """Reads a file from its front, a piece at a time. Copies: one through the page cache, none past it.

    The open descriptor keeps the bytes readable when the file is deleted or replaced; it is closed with the last byte, by `close`, or
    when the landing is dropped.
    """

    def __init__(self, tier: str, descriptor: int, block: memoryview, nbytes: int) -> None:
        self._descriptor = descriptor
        super().__init__(block[:nbytes])
        self._tier = tier
        self._block = block  # past the cache, the last read asks for whole blocks too

    def _receive(self, room: memoryview) -> int:
        if self.filled % BLOCK_NBYTES:  # a read was cut short, and only the cache can go on from there
            use_cache(self._descriptor)
        with io_errors(self._tier):
            count = os.preadv(self._descriptor, [self._block[self.filled : self.filled + PIECE_NBYTES]], self.filled)
        if not count:
            raise CorruptError(f"tier {self._tier}: a file ends after {self.filled} B of {self.nbytes} B")
        return count

    def _end(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self._end()


def open_record(tier: str, path: Path, nbytes: int, pool: BufferPool, direct: str) -> FileLanding:
    """Begin to read a file of exactly `nbytes` into memory of the pool; another length raises CorruptError before any is taken."""
    descriptor = _open_regular(path)
    try:
        found = os.fstat(descriptor).st_size
        if found != nbytes:
            raise CorruptError(f"{path.name[:16]} has {found} B, {nbytes} B were written")
        if reads_direct(direct, descriptor, nbytes):
            pass_cache(descriptor)
            block = pool.take(round_up(nbytes))
        else:
            block = pool.take(nbytes)
    except BaseException:
        os.close(descriptor)
        raise
    return FileLanding(tier, descriptor, block, nbytes)


def read_head(path: Path) -> tuple[RecordHead, int] | None:
    """Return the verified head of a record file and when it was written, in ns; None when the file is no record or has another length."""
    try:
        descriptor = _open_regular(path)
    except OSError:
        return None
    try:
        head = os.pread(descriptor, HEAD_NBYTES, 0)
        found = parse_head(os.pread(descriptor, meta_end(head), 0))
        status = os.fstat(descriptor)
        return (found, status.st_mtime_ns) if found.nbytes == status.st_size else None
    except (KVError, OSError):
        return None
    finally:
        os.close(descriptor)


def _open_regular(path: Path) -> int:
    """Open a regular file for reading; a link or anything else that is not one raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor
