"""What computing and loading cost on this model and device, as far as it was measured. Measuring is the worker's job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from kvstore.core.errors import FormatError, InvalidInputError
from kvstore.planners.linear import LinearCost, first_guess, fit
from kvstore.planners.samples import PREFILL, SPLICE, CostSample, OverlapSample, codec_subject, tier_subject

_OVERLAP_WEIGHT = 0.2  # of one observation, as for the costs


class LoadRates(NamedTuple):
    """Seconds that loading one chunk takes: fixed, per stored byte and per token."""

    fixed_s: float
    byte_s: float
    token_s: float


@dataclass(frozen=True)
class CostModel:
    """Costs of one model on one device; what was never measured is unknown, and never taken to be fast.

    Parameters
    ----------
    costs : mapping of subject to LinearCost
        "prefill" over (1, rows, rows * context), "tier NAME" and "codec LABEL" over (1, stored bytes), "splice" over (1, tokens).
    overlap : float
        Share of the shorter of loading and computing that hides behind the longer: 0 means one after the other, 1 fully hidden.
        A loader that runs one of G layer groups ahead of the engine reaches about 1 - 1/G.
    """

    costs: Mapping[str, LinearCost] = field(default_factory=dict)
    overlap: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= 1:
            raise InvalidInputError(f"overlap is a share within 0 and 1, got {self.overlap}")

    @classmethod
    def calibrated(cls, samples: Iterable[CostSample], overlap: float = 0.0) -> CostModel:
        """Fit every cost that the samples speak of.

        A prefill cost needs three samples of different size, any other two; fewer raise InvalidInputError.
        """
        groups: dict[str, list[CostSample]] = {}
        for sample in samples:
            groups.setdefault(sample.subject, []).append(sample)
        return cls({subject: fit_samples(group) for subject, group in groups.items()}, overlap)

    def observe(self, sample: CostSample | OverlapSample) -> CostModel:
        """Return the model after one more measurement; the first of its subject is explained by the size of the work alone."""
        if isinstance(sample, OverlapSample):
            return replace(self, overlap=self.overlap + _OVERLAP_WEIGHT * (sample.overlap - self.overlap))
        known = self.costs.get(sample.subject)
        updated = known.observe(sample.features, sample.seconds) if known else first_guess(sample.features, sample.seconds)
        return replace(self, costs={**self.costs, sample.subject: updated})

    def predict_prefill(self, rows: int, context: float) -> float | None:
        """Return the seconds of a pass over `rows` rows that see `context` keys each on average; None before any measurement."""
        prefill = self.costs.get(PREFILL)
        return prefill.predict((1.0, float(rows), rows * context)) if prefill else None

    def predict_load(self, tier: str, nbytes: int, codec: str, n_tokens: int) -> float | None:
        """Return the seconds of reading, decoding and splicing a chunk; None when one of the three was never measured."""
        rates = self.load_rates(tier, codec)
        return rates.fixed_s + rates.byte_s * nbytes + rates.token_s * n_tokens if rates else None

    def load_rates(self, tier: str, codec: str) -> LoadRates | None:
        """Return what every load from a tier with a codec costs; None when one of its steps was never measured."""
        read, decode, splice = (self.costs.get(subject) for subject in (tier_subject(tier), codec_subject(codec), SPLICE))
        if read is None or decode is None or splice is None:
            return None
        (read_s, read_byte_s), (decode_s, decode_byte_s), (splice_s, token_s) = (c.coefficients for c in (read, decode, splice))
        return LoadRates(read_s + decode_s + splice_s, read_byte_s + decode_byte_s, token_s)

    def ttft(self, compute_s: float, load_s: float) -> float:
        """Return the seconds to the first token of a request that computes and loads for so long."""
        return max(compute_s, load_s) + (1 - self.overlap) * min(compute_s, load_s)

    def to_json(self) -> dict[str, Any]:
        """Return the model as a JSON object."""
        return {"costs": {subject: cost.to_json() for subject, cost in self.costs.items()}, "overlap": self.overlap}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CostModel:
        """Check and read `to_json`; anything else raises FormatError or InvalidInputError."""
        try:
            costs = {str(name): LinearCost.from_json(cost, 3 if name == PREFILL else 2) for name, cost in value["costs"].items()}
            return cls(costs, float(value["overlap"]))
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise FormatError(f"not a cost model: {error!r}") from error


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
