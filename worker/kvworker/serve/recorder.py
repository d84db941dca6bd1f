"""Record traffic for `larder simulate`: lengths, times and keys that mean nothing elsewhere; no text and no token."""

from __future__ import annotations

import hmac
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from kvclient.records import Report
from kvstore.core.errors import ConfigError
from kvstore.simulate.trace import HEADER, MAX_LINE_NBYTES, Asked, TraceRequest, write_request
from kvworker.answer.prompt import DEVICE

_KEY_NBYTES = 8
_log = logging.getLogger(__name__)


class TraceRecorder:
    """Appends one line per answered request to a file of its owner's only. Thread-safe; a file that cannot be written ends the recording.

    A passage's key is an HMAC of tenant and passage under a secret that stays with the worker, so a file that is handed on tells neither
    what was read nor who read it, and guesses cannot be checked without the secret.

    Parameters
    ----------
    path : Path
        The file; what an earlier worker wrote is kept. A file of something else raises ConfigError.
    secret : bytes
        Makes the keys; the same one makes the same keys.
    capacity_bytes : int
        Where the file ends.
    """

    def __init__(self, path: Path, secret: bytes, capacity_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self._secret, self._capacity_bytes, self._clock = secret, capacity_bytes, clock
        self._lock = threading.Lock()
        try:
            self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            self._nbytes = _begin(self._file, path)
        except OSError as error:
            raise ConfigError(f"worker.trace_file {path}: {error.strerror}") from error

    def record(self, tenant: str, report: Report) -> None:
        """Append a request; does nothing once the file is full or could not be written."""
        line = write_request(self._request(tenant, report)).encode() + b"\n"
        with self._lock:
            if self._file is None or len(line) > MAX_LINE_NBYTES:
                return
            if self._nbytes + len(line) > self._capacity_bytes:
                self._stop(f"it has {self._nbytes} B of at most {self._capacity_bytes} B; raise worker.trace_bytes, or move it away")
                return
            try:
                if os.pwrite(self._file, line, self._nbytes) < len(line):
                    os.ftruncate(self._file, self._nbytes)
                    self._stop("the disk is full")
                else:
                    self._nbytes += len(line)
            except OSError as error:
                self._stop(error.strerror or str(error))

    def close(self) -> None:
        """Let go of the file. Safe to call again."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def _stop(self, why: str) -> None:
        """End the recording, with one line in the log."""
        assert self._file is not None
        os.close(self._file)
        self._file = None
        _log.warning("requests are no longer recorded in worker.trace_file: %s", why)

    def _request(self, tenant: str, report: Report) -> TraceRequest:
        """Return what is kept of a report. The size of a copy on the device is not what a store keeps, so it is left out."""
        passages = tuple(
            Asked(self._key(tenant, row.passage.id), row.passage.n_tokens, 0 if row.tier == DEVICE else row.nbytes)
            for row in report.passages
        )
        question_tokens = max(1, report.tokens_recomputed - sum(row.rows_recomputed for row in report.passages))
        return TraceRequest(self._clock(), passages, question_tokens, report.ttft_s, report.predicted_ttft_s)

    def _key(self, tenant: str, passage: str) -> str:
        """Return the key of a tenant's passage: 16 hex digits."""
        text = b"larder/trace/1\0" + f"{len(tenant)}:{tenant}{passage}".encode()
        return hmac.digest(self._secret, text, "sha256")[:_KEY_NBYTES].hex()


def _begin(file: int, path: Path) -> int:
    """Write the header of a new file, or check that of an old one and cut a last line that was not finished; return its length."""
    head = HEADER.encode() + b"\n"
    nbytes = os.fstat(file).st_size
    if nbytes == 0:
        return os.pwrite(file, head, 0)
    if os.pread(file, len(head), 0) != head:
        raise ConfigError(f"worker.trace_file {path} is not a trace; name another file, which is made")
    start = max(0, nbytes - MAX_LINE_NBYTES - 1)
    end = start + os.pread(file, nbytes - start, start).rfind(b"\n") + 1
    os.ftruncate(file, end)
    return end
