"""The audit log: one JSON line per admin call and per refused caller, with no secret in it."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from kvstore.core.errors import KVError
from kvstore.server.access.auth import Identity
from kvstore.server.config import AuthConfig

REFUSALS_PER_S = 1.0
REFUSALS_AT_ONCE = 100
_MAX_CHARS = 300
_FILE_MODE = 0o600

_log = logging.getLogger("larder.audit")


class AuditLog:
    """Writes lines to a file, or to the logger "larder.audit". Thread-safe.

    Admins' calls are written always. Refused ones are anybody's doing, so their lines are limited: 100 at once and one a second after
    that, each with the number of those that were left out since the one before. The file is opened for each line, so it may be moved away
    at any time; a line that can't be written to it goes to the logger as an error.

    Parameters
    ----------
    file : Path or None
        Made with mode 0600 when it is missing.
    clock : callable
        Seconds since the epoch.
    """

    def __init__(self, file: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self._file = file
        self._clock = clock
        self._lock = threading.Lock()
        self._allowed = float(REFUSALS_AT_ONCE)
        self._counted_at = clock()
        self._left_out = 0

    def acted(self, caller: Identity, call: str, target: str, peer: str, outcome: str) -> None:
        """Note what came of an admin call; `outcome` is "OK" or the status of its error."""
        who = {"tenant": caller.tenant, "subject": caller.subject}
        self._write({"event": "admin", **who, "call": call, "target": target[:_MAX_CHARS], "outcome": outcome, "peer": peer})

    def refused(self, call: str, peer: str, why: KVError, caller: Identity | None = None) -> None:
        """Note a caller who was not let in, or not to this call; None for one who is nobody we know."""
        with self._lock:
            now = self._clock()
            self._allowed = min(REFUSALS_AT_ONCE, self._allowed + max(0.0, now - self._counted_at) * REFUSALS_PER_S)
            self._counted_at = now
            if self._allowed < 1:
                self._left_out += 1
                return
            self._allowed -= 1
            left_out, self._left_out = self._left_out, 0
        who = {"tenant": caller.tenant, "subject": caller.subject} if caller else {}
        line = {"event": "refused", **who, "call": call, "outcome": why.code, "peer": peer, "reason": str(why)[:_MAX_CHARS]}
        self._write({**line, "left_out": left_out} if left_out else {**line})

    def _write(self, line: dict[str, object]) -> None:
        """Write one line with the time in front."""
        moment = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")
        text = json.dumps({"time": moment, **line})
        if self._file is None:
            _log.info("%s", text)
            return
        try:
            _append(self._file, text)
        except OSError as error:
            _log.error("auth.audit_file %s: %s; the line is %s", self._file, error.strerror, text)


def open_audit(auth: AuthConfig) -> AuditLog:
    """Return the log that a configuration names."""
    return AuditLog(Path(auth.audit_file).expanduser() if auth.audit_file else None)


def _append(file: Path, text: str) -> None:
    """Append a line in one write, which others who append do not cut; a link is not followed."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, _FILE_MODE)
    try:
        os.write(descriptor, text.encode() + b"\n")
    finally:
        os.close(descriptor)
