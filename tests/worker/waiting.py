"""Wait for what other threads do, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(is_true: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait until something is true; fail after the timeout."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
