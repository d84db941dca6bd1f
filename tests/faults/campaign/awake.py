"""A clock that stands still while other processes do: what happens on a machine that stops them all says nothing of ours.

Job control and a suspended machine do that. A process of its own beats, and where it misses its beats nobody else could run either.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from types import TracebackType

_BEAT = "import time\nwhile True: print(flush=True); time.sleep(0.1)"
_STILL_S = 2.0  # between two beats; a busy machine is awake


class Awake:
    """Seconds in which other processes could run, from when it is entered; a context manager. Any thread may read it."""

    def __init__(self) -> None:
        self._lost_s, self._beat_at_s = 0.0, time.monotonic()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._listen, name="awake", daemon=True)

    @property
    def lost_s(self) -> float:
        """The time that was lost so far, that of a standstill of now included."""
        with self._lock:
            return self._lost_s + self._gap_s()

    def now_s(self) -> float:
        """Return the time without what was lost."""
        return time.monotonic() - self.lost_s

    def __enter__(self) -> Awake:
        self._beating = subprocess.Popen([sys.executable, "-c", _BEAT], stdout=subprocess.PIPE)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._beating.kill()
        self._beating.wait()
        self._thread.join()

    def _listen(self) -> None:
        assert self._beating.stdout is not None
        with self._beating.stdout as beats:
            for _ in beats:
                with self._lock:
                    self._lost_s += self._gap_s()
                    self._beat_at_s = time.monotonic()

    def _gap_s(self) -> float:
        """Return for how long no beat has come, 0 where that is not long; the lock is held."""
        gap_s = time.monotonic() - self._beat_at_s
        return gap_s if gap_s > _STILL_S else 0.0
