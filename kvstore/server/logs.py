"""Log lines of a server process: for people, or one JSON object per line; both name the request, tenant and trace they belong to."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from kvstore.core import calling, tracing


class JsonLines(logging.Formatter):
    """Writes `time`, `level`, `logger` and `message`, and `request`, `tenant`, `trace` and `error` where there are any."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": moment, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        known = {"request": calling.request_id(), "tenant": calling.tenant(), "trace": tracing.trace_id()}
        line |= {name: value for name, value in known.items() if value}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class TextLines(logging.Formatter):
    """Writes a line as people read it, with the request's id and the tenant in brackets where there are any."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, and a traceback behind it where there is one."""
        belongs_to = " ".join(filter(None, (calling.request_id(), calling.tenant())))
        return super().format(record) + (f" [{belongs_to}]" if belongs_to else "")


def log_to_stderr(format_name: str) -> None:
    """Log what happens from now on to standard error, as "text" or "json"."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if format_name == "json" else TextLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
