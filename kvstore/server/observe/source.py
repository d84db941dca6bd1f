"""What a part of a process tells of itself: numbers for Prometheus, a panel for people, and sums whose course is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from kvstore.server.observe.families import Families

Panel = Mapping[str, Any]


class Source(Protocol):
    """One part; everything is read when it is asked for."""

    @property
    def name(self) -> str:
        """How the console calls its panel."""
        ...

    def metrics(self, out: Families) -> None:
        """Add what Prometheus scrapes."""
        ...

    def panel(self) -> Panel:
        """Return what the console shows; JSON can say all of it."""
        ...

    def sums(self) -> Mapping[str, float]:
        """Return a few sums that only grow: the console shows how fast."""
        ...
