"""Send requests when they are due, whatever became of those before: an open loop.

A closed loop, which waits for an answer before it asks again, goes easy on a server that has become slow and measures few of the waits that
its users would have had (coordinated omission).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from kvclient._async.answer import AsyncAnswer
from kvclient.load.arrivals import Arrival
from kvclient.load.outcome import INTERRUPTED, OVERLOAD, Outcome, Outcomes
from kvclient.records import Report
from kvstore.core.errors import KVError


class Asker(Protocol):
    """Asks questions as one tenant."""

    def ask(self, passage_ids: Sequence[str], question: str, *, max_tokens: int) -> AsyncAnswer:
        """Begin to ask; see `AsyncLarder.ask`."""
        ...


@dataclass(frozen=True)
class Tenant:
    """Whose requests they are: its name, its client, and its passages by id."""

    name: str
    asker: Asker
    passage_ids: Sequence[str]


@dataclass(frozen=True)
class Ask:
    """What every request asks: its text, how long an answer may be, and how many may be under way before one is not sent."""

    question: str
    max_tokens: int = 8
    most_in_flight: int = 1024


async def send(
    arrivals: Iterable[Arrival], tenants: Sequence[Tenant], ask: Ask, outcomes: Outcomes, clock: Callable[[], float] = time.perf_counter
) -> None:
    """Send every request at its time and wait for all answers; what came of them is in `outcomes` as it comes.

    Cancelling it sends no more and lets go of what is under way.
    """
    began = clock()
    async with asyncio.TaskGroup() as tasks:
        for arrival in arrivals:
            await asyncio.sleep(max(0.0, began + arrival.at_s - clock()))
            if outcomes.in_flight >= ask.most_in_flight:
                outcomes.done.append(Outcome(arrival.tenant, arrival.at_s, error=OVERLOAD))
                continue
            outcomes.in_flight += 1
            tasks.create_task(_one(arrival, tenants[arrival.tenant], ask, outcomes, lambda: clock() - began))


async def _one(arrival: Arrival, tenant: Tenant, ask: Ask, outcomes: Outcomes, now_s: Callable[[], float]) -> None:
    """Ask one question and note what came of it."""
    outcome = Outcome(arrival.tenant, arrival.at_s, sent_s=now_s())
    try:
        answer = tenant.asker.ask([tenant.passage_ids[i] for i in arrival.passages], ask.question, max_tokens=ask.max_tokens)
        async for _ in answer:
            if math.isnan(outcome.first_s):
                outcome = replace(outcome, first_s=now_s())
        outcome = _finished(outcome, answer.report, now_s())
    except KVError as error:
        outcome = replace(outcome, error=type(error).__name__)
    except asyncio.CancelledError:
        outcomes.done.append(replace(outcome, error=INTERRUPTED))
        raise
    finally:
        outcomes.in_flight -= 1
    outcomes.done.append(outcome)


def _finished(outcome: Outcome, report: Report, end_s: float) -> Outcome:
    """Return an outcome with its end; an answer without any token had its first one then."""
    return replace(
        outcome,
        first_s=end_s if math.isnan(outcome.first_s) else outcome.first_s,
        end_s=end_s,
        loaded_nbytes=sum(row.nbytes for row in report.passages if row.action == "load"),
        tokens_loaded=report.tokens_loaded,
        tokens_recomputed=report.tokens_recomputed,
    )
