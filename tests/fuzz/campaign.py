"""A small fuzzer that is guided by coverage: an input that reaches a line nobody reached before is kept and changed further."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from kvstore.core.errors import KVError
from tests.fuzz.mutate import mutate

LONGEST_S = 5.0  # of processor time, for one input; one that waits is cut by the test's own timeout
_OURS = tuple(str(Path(__file__).parents[2] / name) for name in ("kvstore", "client", "worker", "proto"))
Line = tuple[CodeType, int]


@dataclass(frozen=True)
class Target:
    """A parser under attack.

    Parameters
    ----------
    parse : callable
        Takes the bytes; may return anything, or raise a KVError.
    seeds : tuple of bytes
        Well-formed inputs.
    repair : callable
        Makes the checksums of an input right, so that what stands behind them is reached.
    ends_in_error : bool
        A well-formed input ends in an error of ours too, such as a connection that was closed.
    """

    parse: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    repair: Callable[[bytes], bytes] = bytes
    ends_in_error: bool = False


@dataclass
class Campaign:
    """Inputs that are tried, one after the other."""

    target: Target
    seed: int
    corpus: list[bytes] = field(init=False)
    lines: set[Line] = field(init=False, default_factory=set)
    n_refused: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.corpus = list(self.target.seeds)

    def run(self, count: int) -> None:
        """Try the seeds, which must be accepted, and `count` inputs; AssertionError quotes one that does what no input may do."""
        for data in self.target.seeds:
            self._trace(data)
        assert not self.n_refused or self.target.ends_in_error, "a well-formed seed was refused"
        rng = random.Random(self.seed)
        for _ in range(count):
            data = mutate(self.corpus, rng)
            if rng.random() < 0.7:
                data = self.target.repair(data)
            n_known = len(self.lines)
            self._trace(data)
            if len(self.lines) > n_known:
                self.corpus.append(data)

    def _trace(self, data: bytes) -> None:
        """Try one input and note the lines of ours that it reached."""
        start = time.thread_time()
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            self.target.parse(data)
        except KVError:
            self.n_refused += 1
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}, for {data[:2000]!r}") from error
        finally:
            sys.settrace(before)
        took_s = time.thread_time() - start
        assert took_s < LONGEST_S, f"{took_s:.1f} s for {data[:2000]!r}"

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Trace the lines of our own files only."""
        return self._line if frame.f_code.co_filename.startswith(_OURS) else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.lines.add((frame.f_code, frame.f_lineno))
        return self._line
