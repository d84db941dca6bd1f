"""Measurements that costs are made of. Each names its subject: the cost that it tells something about."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from kvstore.core.errors import InvalidInputError

PREFILL, SPLICE = "prefill", "splice"


class Pass(StrEnum):
    """What a forward pass was for; each kind differs from prefill as it was measured at start in a way of its own."""

    WHOLE = "whole"
    """A prompt without anything loaded, in one pass on a device that does nothing else."""
    STEP = "step"
    """Some rows, beside loads that take the processor and its memory now and then."""
    LAST = "last"
    """The rows that are left, with everything that was loaded put in its place."""


class Manner(StrEnum):
    """How a request came to its first token."""

    COMPUTED = "computed"
    LOADED = "loaded"
    RACED = "raced"


def pass_subject(work: Pass) -> str:
    """Return the subject of how much longer passes of a kind take than was measured at start."""
    return f"pass {work}"


def outcome_subject(manner: Manner) -> str:
    """Return the subject of how much longer requests of a manner take than their plans add up to."""
    return f"outcome {manner}"


def tier_subject(tier: str) -> str:
    """Return the subject of reads from a tier."""
    return f"tier {tier}"


def tier_of(subject: str) -> str | None:
    """Return the tier of a subject that `tier_subject` made; None for any other."""
    kind, _, tier = subject.partition(" ")
    return tier if kind == "tier" else None


def codec_subject(codec: str) -> str:
    """Return the subject of decoding with a codec."""
    return f"codec {codec}"


@dataclass(frozen=True)
class PrefillSample:
    """A forward pass: `rows` rows of a prompt, which see `context` keys each on average, took `seconds`."""

    rows: int
    context: float
    seconds: float

    def __post_init__(self) -> None:
        _check_positive(self)

    @property
    def subject(self) -> str:
        """The cost that this measures."""
        return PREFILL

    @property
    def features(self) -> tuple[float, ...]:
        """One pass, its rows, and its pairs of row and key."""
        return (1.0, float(self.rows), self.rows * self.context)


@dataclass(frozen=True)
class ReadSample:
    """Reading a chunk of `nbytes` bytes from a tier, with whatever it waited for and its verification, took `seconds`."""

    tier: str
    nbytes: int
    seconds: float

    def __post_init__(self) -> None:
        _check_positive(self)

    @property
    def subject(self) -> str:
        """The cost that this measures."""
        return tier_subject(self.tier)

    @property
    def features(self) -> tuple[float, ...]:
        """One read and its bytes."""
        return (1.0, float(self.nbytes))


@dataclass(frozen=True)
class DecodeSample:
    """Decoding a chunk of `nbytes` stored bytes with a codec took `seconds`."""

    codec: str
    nbytes: int
    seconds: float

    def __post_init__(self) -> None:
        _check_positive(self)

    @property
    def subject(self) -> str:
        """The cost that this measures."""
        return codec_subject(self.codec)

    @property
    def features(self) -> tuple[float, ...]:
        """One chunk and its stored bytes."""
        return (1.0, float(self.nbytes))


@dataclass(frozen=True)
class SpliceSample:
    """Rotating and scattering `n_chunks` chunks of `n_tokens` tokens in all into the cache took `seconds`."""

    n_chunks: int
    n_tokens: int
    seconds: float

    def __post_init__(self) -> None:
        _check_positive(self)

    @property
    def subject(self) -> str:
        """The cost that this measures."""
        return SPLICE

    @property
    def features(self) -> tuple[float, ...]:
        """Chunks and their tokens."""
        return (float(self.n_chunks), float(self.n_tokens))


@dataclass(frozen=True)
class PassSample:
    """A pass that takes `planned_s` by what was measured at start, with all that it lands, took `seconds`."""

    work: Pass
    planned_s: float
    seconds: float

    def __post_init__(self) -> None:
        _check_positive(self)

    @property
    def subject(self) -> str:
        """The cost that this measures."""
        return pass_subject(self.work)

    @property
    def features(self) -> tuple[float, ...]:
        """One pass, and its planned seconds."""
        return (1.0, self.planned_s)


@dataclass(frozen=True)
class OutcomeSample:
    """A request whose costs add up to `planned_s` had its first token after `ttft_s`; it tells how well plans predict."""

    manner: Manner
    planned_s: float
    ttft_s: float

    def __post_init__(self) -> None:
        _check_positive(self)

    @property
    def subject(self) -> str:
        """The cost that this measures."""
        return outcome_subject(self.manner)

    @property
    def features(self) -> tuple[float, ...]:
        """One request, and its plan's seconds."""
        return (1.0, self.planned_s)

    @property
    def seconds(self) -> float:
        """What it took."""
        return self.ttft_s


@dataclass(frozen=True)
class WaitSample:
    """A read from a tier waited `seconds`, perhaps none, behind reads of other requests before its own began."""

    tier: str
    seconds: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise InvalidInputError(f"WaitSample: seconds must be finite and at least 0, got {self.seconds}")


CostSample = PrefillSample | ReadSample | DecodeSample | SpliceSample | PassSample | OutcomeSample


def _check_positive(sample: CostSample) -> None:
    """Raise InvalidInputError unless every number of the sample is finite and above zero."""
    for name, value in vars(sample).items():
        if not isinstance(value, str) and not (math.isfinite(value) and value > 0):
            raise InvalidInputError(f"{type(sample).__name__}: {name} must be finite and above 0, got {value}")
