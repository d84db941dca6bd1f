"""An open loop on a clock of its own: slow answers move no question, and their waits are all counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

import pytest

from kvclient.load.arrivals import Arrival
from kvclient.load.outcome import INTERRUPTED, OVERLOAD, Outcome, Outcomes, percentiles
from kvclient.load.sending import Ask, Tenant, send
from kvclient.records import Passage, PassageReport, Report
from kvstore.core.errors import DeadlineError

ROWS = (
    PassageReport(Passage("p", "s", 0, 7, ""), "load", "memory", "raw", 100, 0.1, "", 0),
    PassageReport(Passage("q", "s", 1, 7, ""), "compute", "", "", 0, 0.0, "", 7),
)
REPORT = Report("r", ROWS, "min_cost", "none", {}, 0.1, 0.1, 7, 9, 2, "exact")


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0

    def time(self) -> float:
        """Return the virtual seconds."""
        return self._now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self._now = max(self._now, self._scheduled[0]._when)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


class Answer:
    """An answer whose first token takes some seconds and whose end takes as long again."""

    report = REPORT

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def __aiter__(self) -> AsyncIterator[str]:
        await asyncio.sleep(self._seconds)
        yield "token"
        await asyncio.sleep(self._seconds)


class Asker:
    """Answers the n-th question in the n-th time; notes what was asked and when."""

    def __init__(self, seconds: Sequence[float | Exception], now: Callable[[], float]) -> None:
        self._seconds, self._now = list(seconds), now
        self.asked: list[tuple[float, list[str]]] = []

    def ask(self, passage_ids: Sequence[str], question: str, *, max_tokens: int) -> Any:
        """Begin."""
        self.asked.append((self._now(), list(passage_ids)))
        next_one = self._seconds.pop(0)
        if isinstance(next_one, Exception):
            raise next_one
        return Answer(next_one)


def play(seconds: Sequence[float | Exception], due: Sequence[float], most_in_flight: int = 100) -> tuple[Asker, list[Outcome]]:
    """Send questions that are due at some times and answered in others; return what was asked and what came of it."""
    loop = VirtualLoop()
    asker, outcomes = Asker(seconds, loop.time), Outcomes()
    arrivals = [Arrival(at_s, 0, (1, 0)) for at_s in due]
    _run(loop, send(arrivals, [Tenant("t", asker, ["a", "b"])], Ask("?", 4, most_in_flight), outcomes, loop.time))
    return asker, sorted(outcomes.done, key=lambda outcome: outcome.due_s)


def _run(loop: VirtualLoop, work: Coroutine[Any, Any, None]) -> None:
    try:
        loop.run_until_complete(work)
    finally:
        loop.close()


def test_a_slow_answer_delays_no_question() -> None:
    """A closed loop would ask the second and third question 10 s late, and never see the waits of the first seconds."""
    asker, _ = play([5.0, 0.1, 0.1], [1.0, 2.0, 3.0])
    assert [at for at, _ in asker.asked] == [1.0, 2.0, 3.0]
    assert asker.asked[0][1] == ["b", "a"]


def test_times_are_those_of_each_question() -> None:
    """First token and end, from when it was due."""
    _, (first, second) = play([5.0, 0.25], [1.0, 2.0])
    assert (first.due_s, first.sent_s, first.first_s, first.end_s) == (1.0, 1.0, 6.0, 11.0)
    assert (second.first_s, second.end_s) == (2.25, 2.5)


def test_a_failure_is_counted_by_its_kind_and_ends_nothing() -> None:
    """The others go on."""
    _, outcomes = play([DeadlineError("late"), 0.1], [1.0, 2.0])
    assert [outcome.error for outcome in outcomes] == ["DeadlineError", ""]


def test_a_question_too_many_is_not_sent_and_is_counted() -> None:
    """Memory is bounded, and whoever reads the result learns that it happened."""
    asker, outcomes = play([10.0, 10.0, 0.1], [1.0, 2.0, 3.0, 30.0], most_in_flight=2)
    assert [outcome.error for outcome in outcomes] == ["", "", OVERLOAD, ""]
    assert len(asker.asked) == 3


def test_a_load_that_is_interrupted_says_what_was_under_way() -> None:
    """And what was answered before."""
    loop, outcomes = VirtualLoop(), Outcomes()
    tenants = [Tenant("t", Asker([0.1, 50.0], loop.time), ["a", "b"])]

    async def interrupt() -> None:
        sending = asyncio.create_task(send([Arrival(1.0, 0, (0,)), Arrival(2.0, 0, (0,))], tenants, Ask("?"), outcomes, loop.time))
        await asyncio.sleep(5.0)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending

    _run(loop, interrupt())
    assert sorted(outcome.error for outcome in outcomes.done) == ["", INTERRUPTED]
    assert outcomes.in_flight == 0


def test_a_summary_counts_waits_from_when_questions_were_due() -> None:
    """A question that was sent 2 s late was waited for 2 s longer than the server knows."""
    outcomes = Outcomes([Outcome(0, 1.0, 3.0, 4.0, 5.0, "", 10, 6, 4), Outcome(0, 1.0, error="DeadlineError")])
    record = outcomes.summary(10.0)
    assert (record["ttft_s"]["p50"], record["latency_s"]["p50"], record["sent_ttft_s"]["p50"]) == (3.0, 4.0, 1.0)
    assert (record["lateness_s"], record["answered"], record["requests"], record["answered_per_s"]) == (2.0, 1, 2, 0.1)
    assert record["errors"] == {"DeadlineError": 1}


def test_what_was_loaded_is_added_up_from_reports() -> None:
    """Bytes of passages that were loaded, and tokens of both kinds."""
    _, (outcome,) = play([0.1], [1.0])
    assert (outcome.loaded_nbytes, outcome.tokens_loaded, outcome.tokens_recomputed) == (100, 7, 9)


@pytest.mark.parametrize(("n", "p50", "p90", "p99"), [(1, 1, 1, 1), (10, 5, 9, 10), (100, 50, 90, 99), (1000, 500, 900, 990)])
def test_percentiles_are_values_that_were_measured(n: int, p50: int, p90: int, p99: int) -> None:
    """The smallest that so many per cent do not exceed; nothing is interpolated."""
    assert percentiles([float(value) for value in range(n, 0, -1)]) == {"p50": p50, "p90": p90, "p99": p99, "max": n}


def test_nothing_has_no_percentiles() -> None:
    """A load whose every question failed."""
    assert percentiles([]) == {}
