"""Sizes and counts as people write them."""

from __future__ import annotations

import re

from kvstore.core.errors import ConfigError

_SIZES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse_nbytes(text: str | int) -> int:
    """Read "512MiB", "1.5 GB" or a plain number of bytes; anything else, or a negative size, raises ConfigError."""
    match = re.fullmatch(r"\s*([0-9]{1,20})(\.[0-9]{1,20})?\s*([A-Za-z]*)\s*", str(text))
    unit = match[3].lower() if match else "?"
    if match is None or unit not in _SIZES:
        raise ConfigError(f"{str(text)[:40]!r} is not a size; write a number and one of B, KB, MB, GB, TB, KiB, MiB, GiB, TiB")
    return int(match[1]) * _SIZES[unit] + int(float(match[2] or 0) * _SIZES[unit])


def format_count(n: int, noun: str) -> str:
    """Write a number of things for people: "1 chunk", "2 chunks"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def format_nbytes(nbytes: float) -> str:
    """Write a size for people: "3.2 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TiB"
