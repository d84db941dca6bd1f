"""The threads of a process as the system counts them, by the pools they belong to."""

from __future__ import annotations

import ctypes
import re
import sys
import threading
from collections import Counter
from pathlib import Path
from types import FrameType

_PR_SET_NAME = 15
_MOST_CHARS = 15  # of a name, for the system


def name_threads() -> None:
    """Tell the system the names of Python threads that start from now on, which Python itself does from 3.14 on."""
    threading.setprofile(_tell)


def leave_unnamed() -> None:
    """Tell it no more names."""
    threading.setprofile(None)  # type: ignore[arg-type]


def pool_of(thread: str) -> str:
    """Return a thread's name without its number, as the system cuts it: what all threads of a pool are called."""
    name = re.sub(r"^Thread-\d+ \((.*)\)$", r"\1", thread)
    return re.sub(r"[\W_]?\d+$", "", name)[:_MOST_CHARS]


def threads_of(process_id: int) -> Counter[str]:
    """Count a process's threads by pool; its first one is called main."""
    found: Counter[str] = Counter()
    for task in (Path("/proc") / str(process_id) / "task").iterdir():
        try:
            found["main" if task.name == str(process_id) else pool_of((task / "comm").read_text().rstrip("\n"))] += 1
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
    return found


def _tell(frame: FrameType, event: str, argument: object) -> None:
    """Name the calling thread, once: called with the first thing it does."""
    sys.setprofile(None)
    ctypes.CDLL(None).prctl(_PR_SET_NAME, pool_of(threading.current_thread().name).encode(), 0, 0, 0)
