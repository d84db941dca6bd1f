"""What came of requests, and its percentiles."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

PERCENTILES = (50, 90, 99)
OVERLOAD, INTERRUPTED = "not sent: too many under way", "interrupted"


@dataclass(frozen=True)
class Outcome:
    """One request, in seconds behind the start of the load: when it was due, sent, answered first and to its end.

    `error` names what went wrong, "" for an answer. A request that was not sent, or not answered, has no later times.
    """

    tenant: int
    due_s: float
    sent_s: float = math.nan
    first_s: float = math.nan
    end_s: float = math.nan
    error: str = ""
    loaded_nbytes: int = 0
    tokens_loaded: int = 0
    tokens_recomputed: int = 0


@dataclass
class Outcomes:
    """Everything that came of a load so far; `in_flight` are sent and not answered."""

    done: list[Outcome] = field(default_factory=list)
    in_flight: int = 0

    @property
    def answered(self) -> list[Outcome]:
        """The requests that were answered."""
        return [outcome for outcome in self.done if not outcome.error]

    @property
    def errors(self) -> Counter[str]:
        """How many went wrong, by what."""
        return Counter(outcome.error for outcome in self.done if outcome.error)

    def summary(self, elapsed_s: float) -> dict[str, Any]:
        """Return the load as one record.

        `ttft_s` and `latency_s` count from when a request was due, whether it was sent then or later: what a user waits. `sent_ttft_s`
        counts from the sending, and is smaller where this process could not keep up, by up to `lateness_s`.
        """
        answered = self.answered
        return {
            "seconds": elapsed_s,
            "requests": len(self.done),
            "answered": len(answered),
            "in_flight": self.in_flight,
            "answered_per_s": len(answered) / elapsed_s if elapsed_s else 0.0,
            "errors": dict(self.errors.most_common()),
            "ttft_s": percentiles([o.first_s - o.due_s for o in answered]),
            "latency_s": percentiles([o.end_s - o.due_s for o in answered]),
            "sent_ttft_s": percentiles([o.first_s - o.sent_s for o in answered]),
            "lateness_s": max((o.sent_s - o.due_s for o in answered), default=0.0),
            "loaded_nbytes": sum(o.loaded_nbytes for o in answered),
            "tokens_loaded": sum(o.tokens_loaded for o in answered),
            "tokens_recomputed": sum(o.tokens_recomputed for o in answered),
        }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return p50, p90, p99 and the largest value; the p-th is the smallest that p % of the values do not exceed. Empty without values."""
    ordered = sorted(values)
    if not ordered:
        return {}
    picked = {f"p{p}": ordered[math.ceil(p / 100 * len(ordered)) - 1] for p in PERCENTILES}
    return {**picked, "max": ordered[-1]}
