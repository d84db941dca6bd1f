"""What a planner is asked and what it answers. Items carry numbers; their `why` is written only when somebody reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvstore.core.errors import InvalidInputError
from kvstore.core.units import format_nbytes
from kvstore.planners.makespan import Option
from kvstore.planners.share_out import Work


@dataclass(frozen=True)
class PassageAsk:
    """One passage of a prompt: its tokens take the rows `start` to `start + n_tokens - 1`.

    `patch_rows` is how many of them the recompute policy computes again when the passage is loaded.
    """

    index: int
    n_tokens: int
    start: int
    patch_rows: int = 0

    def __post_init__(self) -> None:
        if self.n_tokens < 1 or self.start < 0 or not 0 <= self.patch_rows <= self.n_tokens:
            raise InvalidInputError(f"a passage has at least 1 token, a start of at least 0 and at most all its rows patched: {self}")


@dataclass(frozen=True)
class Request:
    """Passages in the order of the prompt, and the rows at its end that are computed in any case.

    Parameters
    ----------
    deadline_s : float
        When the first token is due. Up to then a planner that knows of losses spends time on quality.
    most_loss : float
        What the losses of all loaded forms may add up to.
    """

    passages: tuple[PassageAsk, ...]
    question_tokens: int
    deadline_s: float = math.inf
    most_loss: float = math.inf

    def __post_init__(self) -> None:
        if self.question_tokens < 1:
            raise InvalidInputError(f"a request computes at least the last row of its prompt, got {self.question_tokens} question tokens")
        if not self.deadline_s > 0 or not self.most_loss >= 0:
            raise InvalidInputError(f"a deadline lies ahead and a loss is not negative, got {self.deadline_s} s and {self.most_loss}")
        end = 0
        for ask in self.passages:
            if ask.start < end:
                raise InvalidInputError(
                    f"passage {ask.index} starts at row {ask.start}, inside what ends at row {end}; order them by start"
                )
            end = ask.start + ask.n_tokens
        if len({ask.index for ask in self.passages}) != len(self.passages):
            raise InvalidInputError("two passages of a request share an index")

    @property
    def n_tokens(self) -> int:
        """Rows of the whole prompt."""
        return (self.passages[-1].start + self.passages[-1].n_tokens if self.passages else 0) + self.question_tokens


@dataclass(frozen=True)
class Offer:
    """One stored form of a passage: where it is, its size, its variant's fingerprint and its codec's label.

    `read_as` says how the passage was read: "document" or "alone". `rank` is the place of that reading in the order of quality, 0 for the
    best; among the offers for one passage only those of the best rank are weighed by speed. `loss` is what the form costs in quality, in
    any unit that adds up over passages. `is_exact` says that it was read behind exactly what stands before the passage here, so that no row
    of it is repaired; exact forms whose speed is known rule out others.
    """

    tier: str
    nbytes: int
    variant: bytes
    codec: str
    read_as: str = "document"
    rank: int = 0
    loss: float = 0.0
    is_exact: bool = False

    def __str__(self) -> str:
        return f"{format_nbytes(self.nbytes)} of {self.codec} from {self.tier}"


Hits = Mapping[int, Sequence[Offer]]  # what is stored of a request's passages, by their index; the preferred form first


@dataclass(frozen=True, slots=True)
class Load:
    """Load a passage in the form of `offer` and compute `patch_rows` of its rows again.

    `load_s` is infinite where a step of the load was never measured; `saved_s` is what computing the passage would take longer.
    """

    index: int
    offer: Offer
    patch_rows: int
    load_s: float
    saved_s: float

    @property
    def why(self) -> str:
        """Say why, with numbers."""
        took = f"in {format_s(self.load_s)}" if math.isfinite(self.load_s) else "at a speed that was never measured"
        return f"loads {self.offer} {took}, computes {self.patch_rows} rows again and saves {format_s(self.saved_s)} of computing"


@dataclass(frozen=True, slots=True)
class Compute:
    """Compute all `rows` rows of a passage in the prompt, exactly, because of `reason`; `refused` is the offer passed over."""

    index: int
    rows: int
    compute_s: float
    reason: str
    refused: Offer | None = None
    load_s: float = math.inf

    @property
    def why(self) -> str:
        """Say why, with numbers."""
        if self.refused is None:
            against = ""
        elif math.isfinite(self.load_s):
            against = f" ({self.refused} takes {format_s(self.load_s)})"
        else:
            against = f" ({self.refused})"
        return f"computes {self.rows} rows in {format_s(self.compute_s)}: {self.reason}{against}"


@dataclass(frozen=True)
class Terms:
    """The numbers that a plan was weighed by: what a race of it begins with.

    Parameters
    ----------
    work : Work
        Seconds per passage, with the lane that the plan chose for each.
    tiers : tuple of str
        The tier that each lane stands for.
    offers : tuple of mappings of lane to Offer
        What can be loaded over each lane, per passage; only forms of the loss that was chosen.
    options : tuple of tuples of Option
        The same in seconds.
    ready_s : tuple of float
        When each lane is free.
    """

    work: Work
    tiers: tuple[str, ...]
    offers: tuple[Mapping[int, Offer], ...]
    options: tuple[tuple[Option, ...], ...]
    ready_s: tuple[float, ...]


@dataclass(frozen=True)
class Plan:
    """What to do with every passage, in the order of the request.

    Parameters
    ----------
    items : tuple of Load or Compute
        One per passage.
    predicted_s, error_s : float or None
        Seconds to the first token, and by how much they may be off; None when they depend on a cost that was never measured.
    planned_s : float or None
        What the plan's costs add up to, before the outcomes of earlier plans corrected it.
    compute_s, load_s : float or None
        Seconds of the device (patched rows, landing and question included), and until the last tier is done.
    loss : float
        What the forms that are loaded cost in quality.
    why : str
        What was weighed, with numbers.
    terms : Terms
        What it was weighed by.
    """

    items: tuple[Load | Compute, ...]
    predicted_s: float | None
    error_s: float | None
    planned_s: float | None
    compute_s: float | None
    load_s: float | None
    loss: float
    why: str
    terms: Terms


def format_s(seconds: float | None) -> str:
    """Write a duration for people: "12.3 ms", or "unknown"."""
    if seconds is None:
        return "unknown"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"
