"""Keep answers inside the operator's quality budget: choose the cheapest policy whose measured loss fits, and say what it is: pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

from kvstore.core.errors import InvalidInputError
from kvworker.answer.policy import RecomputePolicy, parse_policy
from kvworker.quality.calibration import LOSSLESS, Calibration, Measured
from kvworker.quality.variants import ReadAs

AUTO, ALONE = "auto", "alone"
NOT_CALIBRATED = "not calibrated"
EXACT, ALL, NONE = "exact", "all", "none"


@dataclass(frozen=True)
class Choice:
    """A policy, what is known about answers under it, and what else an operator should know, "" for nothing."""

    policy: RecomputePolicy
    quality: str
    note: str = ""


@dataclass(frozen=True)
class Gate:
    """Chooses policies for requests.

    Parameters
    ----------
    calibration : Calibration or None
        What was measured of the model that serves.
    budget : float
        The highest share of answers that may be lost against full prefill.
    codec : str
        `codec_id` of how chunks are stored.
    """

    calibration: Calibration | None
    budget: float
    codec: str

    def choose(self, spec: str, reading: ReadAs) -> Choice:
        """Return the policy that `spec` names, or for "auto" the cheapest inside the budget; see `choices`."""
        return self.choices(spec, reading)[-1]

    def choices(self, spec: str, reading: ReadAs) -> list[Choice]:
        """Return what may answer: the policy that `spec` names, or for "auto" all inside the budget, the most careful first.

        Each is cheaper than all before it. `reading` is how the passages that the store has were read: "prefix" where all of them are an
        exact prefix of the prompt, "alone" if any was read alone, else "document". Where nothing that was measured fits, what is not
        exact is computed. A policy that is not known raises InvalidInputError.
        """
        if spec != AUTO:
            policy = parse_policy(spec)
            return [Choice(policy, self._declared(reading, policy))]
        found = [self._safest()]
        fitting = [row for row in self._rivals[reading] if self._at_most(row) <= self.budget] if reading != "prefix" else []
        cost = math.inf
        for row in sorted(fitting, key=lambda row: (row.loss, row.cost)):
            if row.cost < cost:
                policy, cost = parse_policy(row.policy), row.cost
                found.append(Choice(policy, self._declared(reading, policy)))
        return found

    def read_as(self, spec: str, asked: str) -> str:
        """Return how passages may have been read for a policy, where a question asks for `asked`: alone, if they are not read in turn.

        Raises InvalidInputError where the question asks for what the policy can't use.
        """
        if spec == AUTO or parse_policy(spec).is_in_turn:
            return asked
        if asked not in (AUTO, ALONE):
            raise InvalidInputError(f"policy {spec} sets passages apart, so it takes them read alone, not read_as {asked!r}")
        return ALONE

    def _safest(self) -> Choice:
        """Return the policy that takes nothing but exact rows from the store, and none at all if the codec loses too much of them."""
        note = "" if self.calibration else NOT_CALIBRATED
        row = self._find("prefix", NONE)
        if self.codec == LOSSLESS or (row and self._at_most(row) <= self.budget):
            return Choice(parse_policy(EXACT), self._declared("prefix", parse_policy(EXACT)), note)
        why = f"codec {self.codec} loses up to {self._at_most(row):.2%} of answers" if row else f"codec {self.codec} is not calibrated"
        return Choice(parse_policy(ALL), "exact", note or why)

    def _declared(self, reading: ReadAs, policy: RecomputePolicy) -> str:
        """Say what is known about the worker's codec and a policy; an exact prefix needs no repair, so that only the codec counts."""
        is_prefix = (reading == "prefix" or policy.name == EXACT) and policy.is_in_turn
        if policy.name == ALL or (self.codec == LOSSLESS and is_prefix):
            return "exact"
        row = self._find("prefix", NONE) if is_prefix else self._find(reading, policy.spec)
        what = f"codec {self.codec}" if is_prefix else f"codec {self.codec}, policy {policy.spec}"
        if row is None:
            return f"{what}: unmeasured"
        return f"{what}: {row.loss:.2%} of answers lost, at most {self._at_most(row):.2%} ({row.n_asked} asked)"

    def _at_most(self, row: Measured) -> float:
        """Return the loss that a combination does not exceed, seen that it was chosen from others."""
        return row.at_most(max(1, len(self._rivals[row.reading])))

    @cached_property
    def _rivals(self) -> dict[str, list[Measured]]:
        """By reading what "auto" chooses from: policies that read in turn, whose answers stand in for those of a full prefill."""
        return {reading: [r for r in self._rows(reading) if parse_policy(r.policy).is_in_turn] for reading in get_args(ReadAs)}

    def _find(self, reading: ReadAs, policy: str) -> Measured | None:
        return next((row for row in self._rows(reading) if row.policy == policy), None)

    def _rows(self, reading: ReadAs) -> list[Measured]:
        """Return what was measured of the worker's codec over passages read in one way."""
        rows = self.calibration.rows if self.calibration else ()
        return [row for row in rows if (row.reading, row.codec) == (reading, self.codec)]
