"""Planners by the names that people give."""

from __future__ import annotations

from kvstore.core.discovery import known_names
from kvstore.core.errors import InvalidInputError, UnsupportedError
from kvstore.planners.planner import Planner, find_planner

_PACKAGE = "kvstore.planners"


def named_planner(name: str) -> Planner:
    """Return the planner of that name; another name raises InvalidInputError with those that are known."""
    try:
        return find_planner(name)
    except UnsupportedError as error:
        raise InvalidInputError(f"no planner {name!r}; known: {', '.join(known_names(_PACKAGE))}") from error
