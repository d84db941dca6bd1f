"""What computing and loading cost on this model and device, as far as it was measured. Measuring is the worker's job.

Every cost knows by how much its predictions missed, and plans use that in three places: a deadline is met only if it is with the error on
top; a step of the race is refused only if the loader wins even when it is late by its error; and once outcomes of whole requests were
observed, they correct the prediction and replace the error that the single costs add up to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from kvstore.core.errors import FormatError, InvalidInputError
from kvstore.planners.linear import LinearCost, first_guess, fit
from kvstore.planners.samples import (
    PREFILL,
    SPLICE,
    CostSample,
    Manner,
    OutcomeSample,
    Pass,
    PassSample,
    PrefillSample,
    WaitSample,
    codec_subject,
    outcome_subject,
    pass_subject,
    tier_of,
    tier_subject,
)

_WAIT_WEIGHT = 0.2  # of one observation, as for the costs
_TRUSTED = LinearCost((0.0, 1.0), n_samples=4)  # a plan adds up until outcomes say otherwise: its parts are corrected by then
_MEASURED = LinearCost((0.0, 1.0), n_samples=1)  # a pass takes what was measured at start, which counts as one observation


class LoadRates(NamedTuple):
    """Seconds that loading one chunk takes of its tier (fixed, per stored byte) and then of the device (fixed, per byte, per token)."""

    read_s: float
    read_byte_s: float
    land_s: float
    land_byte_s: float
    land_token_s: float


class Landed(NamedTuple):
    """A chunk that a pass put in its place: the label of its codec, its size in bytes and its tokens."""

    codec: str
    nbytes: int
    n_tokens: int


class Prediction(NamedTuple):
    """Seconds to the first token, give or take `error_s`."""

    seconds: float
    error_s: float


@dataclass(frozen=True)
class CostModel:
    """Costs of one model on one device; what was never measured is unknown, and never taken to be fast.

    Parameters
    ----------
    costs : mapping of subject to LinearCost
        As measured at start: "prefill" over (1, rows, rows * context), "codec LABEL" over (1, stored bytes), "splice" over
        (chunks, tokens). As seen since: "tier NAME" over (1, stored bytes), "pass KIND" over (1, seconds by what was measured at start),
        "outcome MANNER" over (1, planned seconds).
    overlap : float
        Share of the last load that hides behind the last step. A loader that runs one of G layer groups ahead of the engine reaches about
        1 - 1/G.
    waits : mapping of tier to float
        Seconds that reads from a tier lately waited behind reads of other requests.
    """

    costs: Mapping[str, LinearCost] = field(default_factory=dict)
    overlap: float = 0.0
    waits: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= 1:
            raise InvalidInputError(f"overlap is a share within 0 and 1, got {self.overlap}")
        if not all(math.isfinite(wait_s) and wait_s >= 0 for wait_s in self.waits.values()):
            raise InvalidInputError(f"waits are finite and not negative, got {dict(self.waits)}")

    @classmethod
    def calibrated(cls, samples: Iterable[CostSample], overlap: float = 0.0) -> CostModel:
        """Fit every cost that the samples speak of.

        All of them together count as one observation, so that the first requests correct what was measured while the machine was busy with
        other things. A prefill cost needs three samples of different size, any other two; fewer raise InvalidInputError.
        """
        groups: dict[str, list[CostSample]] = {}
        for sample in samples:
            groups.setdefault(sample.subject, []).append(sample)
        return cls({subject: replace(fit_samples(group), n_samples=1) for subject, group in groups.items()}, overlap)

    def observe(self, sample: CostSample | WaitSample) -> CostModel:
        """Return the model after one more measurement; the first of its subject is explained by the size of the work alone."""
        if isinstance(sample, WaitSample):
            known_s = self.waits.get(sample.tier, sample.seconds)
            return replace(self, waits={**self.waits, sample.tier: known_s + _WAIT_WEIGHT * (sample.seconds - known_s)})
        known = self.costs.get(sample.subject) or _PRIORS.get(type(sample))
        updated = known.observe(sample.features, sample.seconds) if known else first_guess(sample.features, sample.seconds)
        return replace(self, costs={**self.costs, sample.subject: updated})

    @property
    def reads(self) -> dict[str, int]:
        """How many reads of each tier it has seen; all that it was calibrated with count as one."""
        return {tier: cost.n_samples for subject, cost in self.costs.items() if (tier := tier_of(subject)) is not None}

    def knows(self, codec: str) -> bool:
        """Tell whether decoding with a codec was measured."""
        return codec_subject(codec) in self.costs

    def prefill(self, work: Pass) -> LinearCost | None:
        """Return what passes of a kind take over (1, rows, rows * context), as lately seen; None before any measurement."""
        prefill, seen = self.costs.get(PREFILL), self.costs.get(pass_subject(work))
        if prefill is None or seen is None:
            return prefill
        return replace(seen, coefficients=tuple(c * seen.coefficients[1] for c in prefill.coefficients))

    def predict_prefill(self, rows: int, context: float) -> float | None:
        """Return the seconds of one pass over a prompt of `rows` rows that see `context` keys each on average; None if unknown."""
        prefill = self.prefill(Pass.WHOLE)
        return prefill.predict((1.0, float(rows), rows * context)) if prefill else None

    def load_rates(self, tier: str, codec: str) -> LoadRates | None:
        """Return what every load from a tier with a codec costs; None when one of its steps was never measured."""
        read, decode, splice = (self.costs.get(subject) for subject in (tier_subject(tier), codec_subject(codec), SPLICE))
        if read is None or decode is None or splice is None:
            return None
        seen = self.costs.get(pass_subject(Pass.LAST), _MEASURED).coefficients[1]
        (read_s, read_byte_s), (decode_s, decode_byte_s), (splice_s, token_s) = (c.coefficients for c in (read, decode, splice))
        return LoadRates(read_s, read_byte_s, (decode_s + splice_s) * seen, decode_byte_s * seen, token_s * seen)

    def pass_sample(self, work: Pass, measured: PrefillSample, landed: Iterable[Landed] = ()) -> PassSample | None:
        """Return what a pass that put chunks in their place besides says about its kind; None where its costs were never measured."""
        prefill, splice = self.costs.get(PREFILL), self.costs.get(SPLICE)
        if prefill is None or splice is None:
            return None
        planned_s = prefill.predict(measured.features)
        for codec, nbytes, n_tokens in landed:
            decode = self.costs.get(codec_subject(codec))
            planned_s += splice.predict((1.0, float(n_tokens))) + (decode.predict((1.0, float(nbytes))) if decode else 0.0)
        return PassSample(work, planned_s, measured.seconds)

    def error(self, subject: str) -> float:
        """Return by how much predictions of a subject missed, as a share; 1 for what was never measured."""
        cost = self.costs.get(subject)
        return cost.relative_error if cost else 1.0

    def predict(self, manner: Manner, planned_s: float, compute_s: float, load_s: float, tiers: Iterable[str]) -> Prediction:
        """Return when a plan that adds up to `planned_s` gives its first token, corrected by how earlier plans of its manner came out.

        Before any of them, the errors of computing `compute_s` and of loading `load_s` over `tiers` are taken to be independent.
        """
        outcome = self.costs.get(outcome_subject(manner))
        load_error = max((self.error(tier_subject(tier)) for tier in tiers), default=0.0)
        error_s = math.hypot(compute_s * self.error(PREFILL), load_s * load_error)
        if outcome is None:
            return Prediction(planned_s, error_s)
        seconds = outcome.predict((1.0, planned_s))
        return Prediction(seconds, seconds * outcome.relative_error)

    def to_json(self) -> dict[str, Any]:
        """Return the model as a JSON object."""
        return {
            "costs": {subject: cost.to_json() for subject, cost in self.costs.items()},
            "overlap": self.overlap,
            "waits": dict(self.waits),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CostModel:
        """Check and read `to_json`; anything else raises FormatError or InvalidInputError."""
        try:
            costs = {str(name): LinearCost.from_json(cost, 3 if name == PREFILL else 2) for name, cost in value["costs"].items()}
            return cls(costs, float(value["overlap"]), {str(tier): float(wait_s) for tier, wait_s in value["waits"].items()})
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise FormatError(f"not a cost model: {error!r}") from error


_PRIORS: Mapping[type, LinearCost] = {PassSample: _MEASURED, OutcomeSample: _TRUSTED}


def fit_samples(samples: Sequence[CostSample]) -> LinearCost:
    """Fit the cost that samples of one subject measure.

    Several subjects, or fewer samples of different size than the cost has coefficients, raise InvalidInputError.
    """
    subjects = sorted({sample.subject for sample in samples})
    if len(subjects) != 1:
        raise InvalidInputError(f"one cost is fitted from samples of one subject, got {', '.join(subjects) or 'no samples'}")
    try:
        return fit([sample.features for sample in samples], [sample.seconds for sample in samples])
    except InvalidInputError as error:
        raise InvalidInputError(f"{subjects[0]}: {error}") from error
