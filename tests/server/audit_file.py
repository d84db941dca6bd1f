"""What a test finds in an audit file."""

from __future__ import annotations

import json
from pathlib import Path


def lines_of(file: Path) -> list[dict[str, object]]:
    """Return the lines of an audit file, none of one that is not there."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
