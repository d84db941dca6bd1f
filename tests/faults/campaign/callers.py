"""Callers that ask one question after another, and compare every answer with the computed one."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from kvclient import Larder, Report
from kvclient.retry import Retry
from tests.faults.campaign.awake import Awake

N_TOKENS = 6
DEADLINE_S = 10.0
PAUSE_S = 0.02  # between a caller's requests, or they would take the processors from what is starting


@dataclass(frozen=True)
class Question:
    """A question over the passages of a document in its own order: whatever is loaded, the answer is the computed one."""

    source: str
    ids: tuple[str, ...]
    text: str


def ask(larder: Larder, question: Question, planner: str) -> tuple[list[int], Report]:
    """Return the tokens of an answer, and its report."""
    answer = larder.ask(question.ids, question.text, max_tokens=N_TOKENS, policy="none", planner=planner).finish()
    return [token.id for token in answer.tokens], answer.report


@dataclass
class Tally:
    """What came of the questions; times are of the campaign's clock."""

    answered_at_s: list[float] = field(default_factory=list)
    loaded_all_at_s: float = 0.0  # when a store had every passage of an answer, last
    took_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    n_unjudged: int = 0  # failed while the machine stood still

    @property
    def n_right(self) -> int:
        """How many answers were the computed ones."""
        return len(self.answered_at_s)

    def rate(self, since_s: float, until_s: float) -> float:
        """Return the right answers per second between two moments."""
        return (bisect_right(self.answered_at_s, until_s) - bisect_right(self.answered_at_s, since_s)) / (until_s - since_s)


class Callers:
    """Threads that ask one question after another in turn, half of them loading all that is stored."""

    def __init__(self, address: str, token: str, expected: Mapping[Question, Sequence[int]], clock: Awake) -> None:
        self._address, self._token, self._expected, self._clock = address, token, expected, clock
        self._questions = list(expected)
        self.tally = Tally()
        self._lock, self._stop = threading.Lock(), threading.Event()

    @contextmanager
    def asking(self, n_callers: int) -> Iterator[Tally]:
        """Ask while the block runs, and wait for the answers that are under way at its end."""
        threads = [threading.Thread(target=self._run, args=(n,), name=f"caller-{n}") for n in range(n_callers)]
        for thread in threads:
            thread.start()
        try:
            yield self.tally
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _run(self, number: int) -> None:
        planner, turn = ("always_load", "min_cost")[number % 2], number
        with Larder(self._address, self._token, timeout_s=DEADLINE_S, retry=Retry(1)) as larder:
            while not self._stop.wait(PAUSE_S):
                turn += 1
                self._ask_once(larder, self._questions[turn % len(self._questions)], planner)

    def _ask_once(self, larder: Larder, question: Question, planner: str) -> None:
        started_s, lost_s = self._clock.now_s(), self._clock.lost_s
        try:
            tokens, report = ask(larder, question, planner)
        except Exception as error:  # whatever it is, a request failed
            took_s = self._clock.now_s() - started_s
            with self._lock:
                if self._clock.lost_s > lost_s:
                    self.tally.n_unjudged += 1
                else:
                    self.tally.wrong.append(f"{question.source} after {took_s:.2f} s: {error!r}")
            return
        took_s = self._clock.now_s() - started_s
        with self._lock:
            self.tally.took_s.append(took_s)
            if tokens != self._expected[question]:
                self.tally.wrong.append(f"{question.source}: {tokens}, not {self._expected[question]}")
                return
            self.tally.answered_at_s.append(self._clock.now_s())
            if all(row.action == "load" for row in report.passages):
                self.tally.loaded_all_at_s = self._clock.now_s()
