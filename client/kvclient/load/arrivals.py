"""When requests come and what they ask: fixed before the first is sent, so that no answer moves a later question."""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from kvstore.core.errors import InvalidInputError


@dataclass(frozen=True)
class Arrival:
    """One request: seconds behind the start at which it is due, whose it is, and the places of its passages among the tenant's."""

    at_s: float
    tenant: int
    passages: tuple[int, ...]


@dataclass(frozen=True)
class Traffic:
    """Poisson arrivals over passages whose popularity falls as a power of their rank; equal fields make equal traffic.

    Breslau et al. 1999 ("Web caching and Zipf-like distributions") measured exponents of 0.64 to 0.83 for requests of documents.

    Parameters
    ----------
    rate_per_s : float
        Requests a second, of all tenants together, however fast they are answered.
    duration_s : float
        When the last request may come.
    n_passages : sequence of int
        How many passages each tenant has; it names the tenants.
    per_request : int
        Different passages in one request; a tenant with fewer is asked about all of them.
    exponent : float
        The passage of rank r is asked about in proportion to r ** -exponent; 0 asks about all alike.
    """

    rate_per_s: float
    duration_s: float
    n_passages: tuple[int, ...]
    per_request: int = 4
    exponent: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rate_per_s", "duration_s"):
            if not (0 < getattr(self, name) < math.inf):
                raise InvalidInputError(f"{name} must be above 0, got {getattr(self, name)}")
        if not self.n_passages or min(self.n_passages) < 1:
            raise InvalidInputError(f"every tenant needs at least one passage, got {self.n_passages}")
        if self.per_request < 1:
            raise InvalidInputError(f"a request needs at least one passage, got {self.per_request}")
        if not 0 <= self.exponent <= 10:
            raise InvalidInputError(f"the exponent of popularity must be within 0 and 10, got {self.exponent}")

    def arrivals(self) -> Iterator[Arrival]:
        """Yield the requests in the order in which they come."""
        rng = random.Random(self.seed)
        ranked = [rng.sample(range(n), n) for n in self.n_passages]  # a document's first passages are no more popular than its last
        weights = [list(accumulate((rank + 1) ** -self.exponent for rank in range(n))) for n in self.n_passages]
        at_s = rng.expovariate(self.rate_per_s)
        while at_s < self.duration_s:
            tenant = rng.randrange(len(self.n_passages))
            places = _draw(rng, weights[tenant], min(self.per_request, self.n_passages[tenant]))
            yield Arrival(at_s, tenant, tuple(ranked[tenant][place] for place in places))
            at_s += rng.expovariate(self.rate_per_s)


def _draw(rng: random.Random, cumulative: Sequence[float], count: int) -> list[int]:
    """Draw different places, one after the other, each in proportion to its weight among those that are left."""
    if 2 * count > len(cumulative):  # redrawing what was drawn would take long (Efraimidis and Spirakis 2006, algorithm A)
        each = [after - before for before, after in zip((0.0, *cumulative), cumulative, strict=False)]
        return sorted(range(len(each)), key=lambda place: rng.expovariate(1.0) / each[place])[:count]
    drawn: dict[int, None] = {}
    while len(drawn) < count:
        drawn[min(bisect(cumulative, rng.random() * cumulative[-1]), len(cumulative) - 1)] = None
    return list(drawn)
