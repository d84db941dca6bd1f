"""What a test must leave behind: no thread and no open file of a lane."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GRACE_S = 3.0  # a thread that was told to end, and a peer that notices
_FILES = Path("/proc/self/fd")


def lane_threads() -> set[threading.Thread]:
    """Return the running threads of lanes."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("lane")}


def open_files() -> dict[str, str]:
    """Return the open sockets, shared memory and files, by descriptor; gRPC's own files for waking threads come and go."""
    found: dict[str, str] = {}
    for entry in _FILES.iterdir():
        try:
            target = os.readlink(entry)
        except OSError:  # the folder's own
            continue
        if not target.startswith("anon_inode:"):
            found[entry.name] = target
    return found


@contextmanager
def leaving_nothing() -> Iterator[None]:
    """Fail when the block leaves a thread or an open file behind that was not there before."""
    threads, files = lane_threads(), open_files()
    yield
    until = time.monotonic() + GRACE_S
    while (extra := [*_new_threads(threads), *_new_files(files)]) and time.monotonic() < until:
        gc.collect()
        threading.Event().wait(0.01)
    assert not extra, f"left behind: {extra}"


def _new_threads(before: set[threading.Thread]) -> list[str]:
    return [thread.name for thread in lane_threads() - before]


def _new_files(before: dict[str, str]) -> list[str]:
    return [f"{number} -> {target}" for number, target in open_files().items() if before.get(number) != target]
