"""Reading record files, and what the system's errors mean for a tier."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvstore.core.errors import CapacityError, CorruptError, KVError, TierUnavailableError
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


def read_whole(path: Path, nbytes: int) -> memoryview:
    """Read a file of exactly `nbytes` into new memory; another length raises CorruptError before anything is allocated."""
    descriptor = _open_regular(path)
    try:
        found = os.fstat(descriptor).st_size
        if found != nbytes:
            raise CorruptError(f"{path.name[:16]} has {found} B, {nbytes} B were written")
        data = bytearray(nbytes)
        view, at = memoryview(data), 0
        while at < nbytes:
            count = os.readv(descriptor, [view[at:]])
            if not count:
                raise CorruptError(f"{path.name[:16]} ends after {at} B of {nbytes} B")
            at += count
        return view
    finally:
        os.close(descriptor)


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
