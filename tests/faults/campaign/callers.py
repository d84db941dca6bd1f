"""Callers that ask without pause, and compare every answer with the computed one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from kvclient import Larder, Report
from kvclient.retry import Retry

N_TOKENS = 6
DEADLINE_S = 10.0
RECENT_S = 1.0


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
    """What came of the questions; times are of the monotonic clock."""

    answered_at_s: list[float] = field(default_factory=list)
    loaded_all_at_s: float = 0.0  # when a store had every passage of an answer, last
    took_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def n_right(self) -> int:
        """How many answers were the computed ones."""
        return len(self.answered_at_s)

    def rate(self, since_s: float, until_s: float) -> float:
        """Return the right answers per second between two moments."""
        return sum(since_s < at_s <= until_s for at_s in reversed(self.answered_at_s)) / (until_s - since_s)


class Callers:
    """Threads that ask one question after another in turn, half of them loading all that is stored."""

    def __init__(self, address: str, token: str, expected: Mapping[Question, Sequence[int]]) -> None:
        self._address, self._token, self._expected = address, token, expected
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
            while not self._stop.is_set():
                turn += 1
                self._ask_once(larder, self._questions[turn % len(self._questions)], planner)

    def _ask_once(self, larder: Larder, question: Question, planner: str) -> None:
        started_s, failure, has_loaded_all = time.monotonic(), "", False
        try:
            tokens, report = ask(larder, question, planner)
            has_loaded_all = all(row.action == "load" for row in report.passages)
            if tokens != self._expected[question]:
                failure = f"{tokens}, not {self._expected[question]}"
        except Exception as error:  # whatever it is, a request failed
            failure = repr(error)
        now_s = time.monotonic()
        with self._lock:
            self.tally.took_s.append(now_s - started_s)
            if failure:
                self.tally.wrong.append(f"{question.source} after {now_s - started_s:.2f} s: {failure}")
            else:
                self.tally.answered_at_s.append(now_s)
                self.tally.loaded_all_at_s = now_s if has_loaded_all else self.tally.loaded_all_at_s
