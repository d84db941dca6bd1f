"""The interface of planners, and how they are found: one planner per file, by its name."""

from __future__ import annotations

from typing import ClassVar, Protocol

from kvstore.core.discovery import find, known_names
from kvstore.core.errors import InvalidInputError, UnsupportedError
from kvstore.planners.cost import CostModel
from kvstore.planners.plan import Hits, Plan, Request

_PACKAGE = "kvstore.planners"


class Planner(Protocol):
    """Decides for every passage of a request whether to load or to compute it. Pure: equal input, equal plan."""

    name: ClassVar[str]
    is_binding: ClassVar[bool]
    """Whether its plans are to be followed as they are, also when computing turns out to be done sooner than loading."""

    def plan(self, request: Request, hits: Hits, costs: CostModel) -> Plan:
        """Return a plan that decides every passage once and loads only what `hits` offers for it."""


def find_planner(name: str) -> Planner:
    """Return the planner of that name; another name raises InvalidInputError with those that are known."""
    try:
        planner: Planner = find(_PACKAGE, name)()
    except UnsupportedError as error:
        raise InvalidInputError(f"no planner {name!r}; known: {', '.join(known_names(_PACKAGE))}") from error
    return planner
