"""What is read from files that may be replaced while we run: certificates, keys, tokens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from kvstore.core.errors import ConfigError

T = TypeVar("T")
Signature = tuple[tuple[int, int, int] | None, ...]

_log = logging.getLogger(__name__)


class Changing(Generic[T]):
    """Holds what `make` made of some files, and makes it again once one of them has changed. Thread-safe.

    Files that can't be used leave what was made before in force, with a warning: half a replacement, or a mistake, shuts nobody out.

    Parameters
    ----------
    paths : sequence of Path
        The files; links are followed, so a link that is turned to another file is a change.
    make : callable
        Reads the files; raises ConfigError for what can't be used. The first call's error passes to the caller.
    """

    def __init__(self, paths: Sequence[Path], make: Callable[[], T]) -> None:
        self._paths = tuple(paths)
        self._make = make
        self._lock = threading.Lock()
        self._seen = self._look()
        self._made = make()

    def current(self) -> T:
        """Return what the files say now; costs one look at each of them."""
        seen = self._look()
        if seen != self._seen:
            with self._lock:
                if seen != self._seen:
                    self._replace()
                    self._seen = seen
        return self._made

    def _replace(self) -> None:
        names = ", ".join(map(str, self._paths))
        try:
            self._made = self._make()
        except ConfigError as error:
            _log.warning("%s changed and can't be used, what was read before stays in force: %s", names, error)
        else:
            _log.info("read %s again", names)

    def _look(self) -> Signature:
        return tuple(map(_signature, self._paths))


def _signature(path: Path) -> tuple[int, int, int] | None:
    """Return what differs once a file is replaced; None for one that is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
