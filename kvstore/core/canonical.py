"""One spelling for every record that is hashed or stored: JSON with sorted keys, no spaces, ASCII only."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from kvstore.core.errors import FormatError


def dumps(value: object) -> bytes:
    """Encode a value of dicts, lists, strings, integers, booleans and None as canonical JSON.

    Floats are written by `repr`, the shortest form that reads back the same; NaN and infinities are refused with ValueError.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def loads(data: bytes) -> dict[str, Any]:
    """Decode a canonical JSON object; anything else, or another spelling of it, raises FormatError."""
    try:
        value = json.loads(data)
        spelled_again = dumps(value)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{len(data)} B are not canonical JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"a JSON object is needed, got {type(value).__name__}")
    if spelled_again != bytes(data):
        raise FormatError("the JSON is not in canonical form (sorted keys, no spaces, ASCII)")
    return value


def digest(value: object) -> bytes:
    """Return the sha256 (32 bytes) of a value's canonical JSON."""
    return hashlib.sha256(dumps(value)).digest()
