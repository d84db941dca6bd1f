"""A disk of a few MiB that can be full: a file system in memory, in a mount namespace of its own, which any user may have."""

from __future__ import annotations

import errno
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

_PIECE = bytes(1 << 16)
_FULL_NBYTES = 4096  # of a file, where there is no file system to fill: what is written beyond fails, as on a full disk
# It lasts as long as whoever holds it; others find it below the root of that process. Its input ends with this process, however that ends.
_HELD = """exec unshare --user --map-root-user --mount \\
  sh -c 'mount -t tmpfs -o "size=$1,mode=700" larder "$2" && echo mounted && exec cat' sh "$1" "$2" """


class SmallDisk:
    """A folder on it, `place`; a context manager.

    Where this machine lets nobody mount anything, it is a folder like any other, files that can't grow stand for a full disk, and a line
    says so.
    """

    def __init__(self, folder: Path, nbytes: int) -> None:
        self._folder, self._nbytes = folder, nbytes
        self.place = folder

    def __enter__(self) -> SmallDisk:
        self._folder.mkdir()
        command = ["sh", "-c", _HELD, "sh", str(self._nbytes), str(self._folder)]
        self._holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._holder.stdout is not None
        assert self._holder.stderr is not None
        self._is_own = self._holder.stdout.readline() == "mounted\n"
        if self._is_own:
            self.place = Path(f"/proc/{self._holder.pid}/root{self._folder}")
        else:
            print(f"no disk of its own, a limit on the size of files instead: {self._holder.stderr.read().strip()}", flush=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._holder.kill()
        self._holder.communicate()

    @contextmanager
    def full(self, process_id: int) -> Iterator[None]:
        """Let nothing more fit while the block runs; the process is the one that writes here."""
        if not self._is_own:
            before = resource.prlimit(process_id, resource.RLIMIT_FSIZE)
            resource.prlimit(process_id, resource.RLIMIT_FSIZE, (_FULL_NBYTES, before[1]))
            yield
            resource.prlimit(process_id, resource.RLIMIT_FSIZE, before)
            return
        ballast = self.place / "ballast"
        _fill(ballast)
        yield
        ballast.unlink()


def _fill(file: Path) -> None:
    """Write until nothing more fits."""
    with file.open("wb", buffering=0) as ballast:
        try:
            while ballast.write(_PIECE):
                pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
