"""Synthetic traffic: passages whose popularity falls as a power of their rank, and passages that nobody asks for twice."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, fields
from itertools import accumulate

from kvstore.core.errors import InvalidInputError
from kvstore.simulate.trace import MAX_PASSAGES, MAX_TOKENS, Asked, TraceRequest

_MOST = 1_000_000  # of requests or passages


@dataclass(frozen=True)
class Zipf:
    """Requests over a fixed set of passages; equal fields make an equal trace.

    Breslau et al. 1999 ("Web caching and Zipf-like distributions") measured exponents of 0.64 to 0.83 for requests of documents.

    Parameters
    ----------
    requests, passages : int
        How many requests, over how many passages.
    exponent : float
        The passage of rank r is asked for in proportion to r ** -exponent.
    per_request : int
        Different passages in one request.
    noise : float
        Share of all requests whose passages are asked for once and never again; they come on top of `requests`.
    shortest, longest : int
        Tokens of a passage, spread evenly over the logarithm.
    question_tokens : int
        Tokens behind the passages.
    seed : int
        The popular part of a trace is the same for any noise.
    """

    requests: int = 2000
    passages: int = 300
    exponent: float = 0.7
    per_request: int = 8
    noise: float = 0.0
    shortest: int = 64
    longest: int = 2048
    question_tokens: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if not (1 <= self.requests <= _MOST and self.per_request <= self.passages <= _MOST and 1 <= self.per_request <= MAX_PASSAGES):
            raise InvalidInputError(f"1 to {_MOST} requests over at most {_MOST} passages, of which each names 1 to {MAX_PASSAGES}: {self}")
        if not (0 <= self.noise <= 0.99 and 0 <= self.exponent <= 10):
            raise InvalidInputError(f"noise is a share within 0 and 0.99, exponent within 0 and 10: {self}")
        if not (1 <= self.shortest <= self.longest <= MAX_TOKENS and 1 <= self.question_tokens <= MAX_TOKENS):
            raise InvalidInputError(f"passages have 1 to {MAX_TOKENS} tokens, the shortest not above the longest: {self}")

    @classmethod
    def parse(cls, text: str) -> Zipf:
        """Read "zipf" or "zipf:exponent=0.8,seed=3"; anything else raises InvalidInputError with what is known."""
        name, _, rest = text.partition(":")
        kinds: dict[str, type[int] | type[float]] = {f.name: float if isinstance(f.default, float) else int for f in fields(cls)}
        values: dict[str, int | float] = {}
        for item in rest.split(",") if rest else []:
            key, _, value = item.partition("=")
            if key not in kinds:
                raise InvalidInputError(f"{text!r}: {key!r} is not known; known are {', '.join(kinds)}")
            try:
                values[key] = kinds[key](value)
            except ValueError as error:
                raise InvalidInputError(f"{text!r}: {key} must be of type {kinds[key].__name__}, got {value!r}") from error
        if name != "zipf":
            raise InvalidInputError(f"{name!r} is not a kind of synthetic traffic; write zipf, or zipf:requests=2000,exponent=0.7")
        return cls(**values)  # type: ignore[arg-type]

    def trace(self) -> list[TraceRequest]:
        """Return the requests, one a second, those of passages that come once spread evenly among the others."""
        popular, once = random.Random(f"popular {self.seed}"), random.Random(f"once {self.seed}")
        catalog = [Asked(f"p{rank}", self._length(popular)) for rank in range(self.passages)]
        weights = list(accumulate((rank + 1) ** -self.exponent for rank in range(self.passages)))
        n_once = round(self.requests * self.noise / (1 - self.noise))
        n = self.requests + n_once
        asked: list[tuple[Asked, ...]] = []
        for i in range(n):
            if (i + 1) * n_once // n > i * n_once // n:
                asked.append(tuple(Asked(f"once{i}.{j}", self._length(once)) for j in range(self.per_request)))
            else:
                asked.append(self._choose(popular, catalog, weights))
        return [TraceRequest(float(i), passages, self.question_tokens) for i, passages in enumerate(asked)]

    def _length(self, chance: random.Random) -> int:
        return round(self.shortest * math.pow(self.longest / self.shortest, chance.random()))

    def _choose(self, chance: random.Random, catalog: list[Asked], weights: list[float]) -> tuple[Asked, ...]:
        """Return different passages, each drawn by its weight among those that are left."""
        chosen: dict[Asked, None] = {}
        while len(chosen) < self.per_request:
            chosen[chance.choices(catalog, cum_weights=weights)[0]] = None
        return tuple(chosen)
