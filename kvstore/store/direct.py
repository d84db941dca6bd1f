"""Direct I/O: bytes that go between the device and our own memory, past the system's page cache.

What the cache holds is best read from it: 3 to 10 GB/s, where the device gave 2.5. What it doesn't hold is read past it at 2.3 to 3.0 GB/s
instead of 1.4 to 2.2, for 0.03 instead of 0.16 s of processor time per GB. A synced write of 32 or 64 MiB goes past it at 1.6 to 2.0 GB/s
instead of 0.8 to 1.6, for 0.14 instead of 0.25 s; one that isn't synced is better left to the cache. `reads_direct` and `writes_direct` are
these findings, measured on a virtual disk under ext4. Larger reads, advice about them, and allocating before a write changed nothing.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import mmap
import os
import platform
import secrets
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from kvstore.core.blob import Buffer
from kvstore.core.pool import BufferPool

MODES = ("auto", "on", "off")
BLOCK_NBYTES = 4096  # offsets, lengths and addresses are multiples of it
MIN_NBYTES = 256 << 10  # what is smaller goes through the cache
_WRITE_NBYTES = 2 << 20
_CACHESTAT = 451  # Linux 6.5; the same number on both machines

_log = logging.getLogger(__name__)


def accepts_direct(directory: Path) -> bool:
    """Write one block past the cache, and remove it; when the filesystem refuses, say so in one log line and return False."""
    path = directory / secrets.token_hex(16)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            pass_cache(descriptor)
            os.write(descriptor, mmap.mmap(-1, BLOCK_NBYTES))
        finally:
            os.close(descriptor)
            path.unlink()
    except OSError as error:
        _log.warning("%s: no direct I/O, everything goes through the page cache: %s", directory, error)
        return False
    return True


def reads_direct(mode: str, descriptor: int, nbytes: int) -> bool:
    """Tell whether to read a file of `nbytes` past the cache: with "auto" when the cache holds less than half of it."""
    if mode == "off" or nbytes < MIN_NBYTES:
        return False
    if mode == "on":
        return True
    cached = cached_nbytes(descriptor)
    return cached is not None and cached < nbytes // 2


def writes_direct(mode: str, nbytes: int, *, is_synced: bool) -> bool:
    """Tell whether to write a file of `nbytes` past the cache: with "auto" when the device is waited for anyway."""
    return nbytes >= MIN_NBYTES and (mode == "on" or (mode == "auto" and is_synced))


def pass_cache(descriptor: int) -> None:
    """Make every later read and write go past the cache; raises OSError where the filesystem can't."""
    fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_DIRECT)


def use_cache(descriptor: int) -> None:
    """Make every later read and write go through the cache."""
    fcntl.fcntl(descriptor, fcntl.F_SETFL, 0)


def round_up(nbytes: int) -> int:
    """Return the next multiple of the block."""
    return -(-nbytes // BLOCK_NBYTES) * BLOCK_NBYTES


def write_all(descriptor: int, pieces: Sequence[Buffer]) -> None:
    """Write the pieces one behind the other. Copies nothing."""
    for piece in pieces:
        view = memoryview(piece).cast("B")
        while view.nbytes:
            view = view[os.write(descriptor, view) :]


def write_direct(descriptor: int, pieces: Sequence[Buffer], pool: BufferPool) -> None:
    """Write the pieces joined into an empty file: whole blocks past the cache, the rest of the last one through it.

    Each byte is copied once, into 2 MiB of aligned memory from the pool.
    """
    pass_cache(descriptor)
    block = pool.take(_WRITE_NBYTES)
    filled = 0
    for piece in pieces:
        view = memoryview(piece).cast("B")
        while view.nbytes:
            count = min(view.nbytes, block.nbytes - filled)
            block[filled : filled + count] = view[:count]
            filled, view = filled + count, view[count:]
            if filled == block.nbytes:
                write_all(descriptor, [block])
                filled = 0
    whole = filled // BLOCK_NBYTES * BLOCK_NBYTES
    write_all(descriptor, [block[:whole]])
    use_cache(descriptor)
    write_all(descriptor, [block[whole:filled]])


def cached_nbytes(descriptor: int) -> int | None:
    """Return how much of a file the page cache holds, without reading any of it; None where the system doesn't tell."""
    system = _system()
    if system is None:
        return None
    whole, found = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * 5)()
    if system.syscall(ctypes.c_long(_CACHESTAT), descriptor, whole, found, 0):
        return None  # an older kernel, or a sandbox that forbids it
    return int(found[0]) * mmap.PAGESIZE


@cache
def _system() -> ctypes.CDLL | None:
    known = sys.platform.startswith("linux") and platform.machine() in ("x86_64", "aarch64")
    return ctypes.CDLL(None) if known else None
