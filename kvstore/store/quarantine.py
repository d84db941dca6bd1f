"""A bounded place for files that are not what they should be, so that somebody can look at them."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from kvstore.store.files import make_directory

MAX_FILES = 32


class Quarantine:
    """Keeps the newest damaged files, at most 32 of them and at most `capacity_bytes` together. Not thread-safe."""

    def __init__(self, directory: Path, capacity_bytes: int) -> None:
        make_directory(directory)
        self._directory = directory
        self._capacity_bytes = capacity_bytes
        found = sorted(directory.iterdir(), key=lambda p: p.lstat().st_mtime_ns)
        self._files = [(path, path.lstat().st_size) for path in found]
        self._trim()

    @property
    def used_bytes(self) -> int:
        """Bytes of the files kept."""
        return sum(nbytes for _, nbytes in self._files)

    def take(self, path: Path) -> None:
        """Move a file here, or remove it when it is too large to keep; a file that is gone is fine. Links are not followed."""
        kept = self._directory / f"{path.name[:64]}.{secrets.token_hex(4)}"
        try:
            nbytes = path.lstat().st_size
            os.rename(path, kept)
        except FileNotFoundError:
            return
        self._files.append((kept, nbytes))
        self._trim()

    def _trim(self) -> None:
        """Remove the oldest files until the rest is within its bounds."""
        while self._files and (len(self._files) > MAX_FILES or self.used_bytes > self._capacity_bytes):
            path, _ = self._files.pop(0)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
