"""What our own processes say about memory: keep large blocks, and leave alone what lives as long as the process."""

from __future__ import annotations

import ctypes
import gc
import sys

# mallopt parameters of glibc, malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
_SETTINGS = ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, 1 << 30), (_TRIM_THRESHOLD, (1 << 31) - 1), (_TOP_PAD, 64 << 20))


def keep_large_blocks() -> bool:
    """Make malloc keep what was freed instead of giving it back; return whether the system's allocator took the settings.

    So a message of 32 MiB does not pay for fresh pages each time.
    It trades resident memory for speed: a process keeps the most that it ever held. Our own processes call it before they allocate; the
    client library leaves it to the application, which may call it at its start.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return False
    taken = [mallopt(parameter, value) for parameter, value in _SETTINGS]
    return all(result == 1 for result in taken)


def leave_alone() -> None:
    """Have the garbage collector never look again at what is there now; call it once everything is loaded.

    A full collection stops every thread: 170 ms with a model and its libraries in memory, in the middle of somebody's first token.
    """
    gc.collect()
    gc.freeze()
