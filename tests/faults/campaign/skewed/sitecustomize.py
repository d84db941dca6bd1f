"""A clock that is two hours ahead, as our own code sees it, for a process that finds this folder on its path.

The libraries below keep the right time: they hand moments to the system, which would wait for two hours.
"""

import sys
import time

SKEW_S = 7200
OURS = ("kvstore", "kvclient", "kvworker")
_time, _time_ns = time.time, time.time_ns


def _skew_s() -> int:
    """Return by how much the clock of the calling module goes ahead."""
    return SKEW_S if sys._getframe(2).f_globals.get("__name__", "").startswith(OURS) else 0


time.time = lambda: _time() + _skew_s()
time.time_ns = lambda: _time_ns() + _skew_s() * 10**9
