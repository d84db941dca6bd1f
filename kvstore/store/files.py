"""Files that appear whole or not at all, and directories that one process owns."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from kvstore.core.blob import Buffer
from kvstore.core.errors import TierUnavailableError
from kvstore.store.direct import write_all

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700


def make_directory(path: Path) -> None:
    """Create a directory, readable by its owner only, and make its entry in the parent durable."""
    if not path.is_dir():
        path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a crash."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: Path, pieces: Sequence[Buffer], write: Callable[[int, Sequence[Buffer]], None] = write_all) -> int:
    """Write a file that must not exist yet and return its open descriptor; on an error the file is removed."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        write(descriptor, pieces)
    except BaseException:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise
    return descriptor


def replace_file(path: Path, data: bytes) -> None:
    """Replace a small file durably: whoever opens it, even after a crash, sees the old bytes or the new ones."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = write_new(fresh, [data])
    try:
        os.fsync(descriptor)
        os.replace(fresh, path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    sync_directory(path.parent)


def write_once(path: Path, data: bytes) -> None:
    """Make a small file durably, whole or not at all; raises FileExistsError when another process was first."""
    make_directory(path.parent)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = write_new(fresh, [data])
    try:
        os.fsync(descriptor)
        os.link(fresh, path)
    finally:
        os.close(descriptor)
        fresh.unlink()
    sync_directory(path.parent)


def lock_directory(directory: Path) -> int:
    """Take the directory for this process and return the descriptor that holds the lock; closing it lets go.

    Raises TierUnavailableError when another store has it.
    """
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise TierUnavailableError(f"{directory} is in use by process {owner}; stop it or choose another directory") from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
