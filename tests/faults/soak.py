"""How long fault campaigns run: a short seeded part of them in every test run, all of them in `make soak`."""

from __future__ import annotations

import os


def n_runs(full: int, short: int) -> int:
    """Return `full` in a soak run, else `short`."""
    return full if os.environ.get("LARDER_SOAK") else short
