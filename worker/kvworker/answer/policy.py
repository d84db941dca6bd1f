"""Recompute policies: which rows of a spliced prompt are computed again. One policy per file in `methods/recompute`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar

from kvstore.core.discovery import find, known_names
from kvstore.core.errors import InvalidInputError, UnsupportedError
from kvworker.engine.engine import Generation, Prefill, Segment, Span, always_computed, spans_of

_PACKAGE = "kvworker.methods.recompute"
Param = int | float | str


@dataclass(frozen=True)
class RecomputePolicy(ABC):
    """Repairs what was stored; what no source can give is computed under every policy.

    A policy that knows its rows from the prompt alone subclasses `FixedRows` instead.
    """

    name: ClassVar[str]
    is_pipelined: ClassVar[bool] = True
    """Whether computing may begin before all layers are loaded."""
    is_in_turn: ClassVar[bool] = True
    """Whether passages are read one behind the other; otherwise they are used as they were read alone, and only an operator chooses it."""
    is_general: ClassVar[bool] = True
    """Whether its defaults do for any model; others have to be told what a model was trained with."""
    reads_need: ClassVar[bool] = False
    """Whether it goes by `KVChunk.need`, which ingesting notes with passages read alone if the worker's policy wants it."""

    def arrange(self, segments: Sequence[Segment]) -> list[Segment]:
        """Return the segments of a prompt, whose last is the question, as they are to stand: what `Engine.begin` is to be given."""
        return list(segments)

    @abstractmethod
    def finish(self, prefill: Prefill) -> Generation:
        """End a prompt; `still_stored` says what is left to repair of it."""

    @abstractmethod
    def work(self, segments: Sequence[Segment], n_layers: int) -> list[int]:
        """Return the repair of each segment in rows that run through all layers, whatever their sources hold: what planners count on."""

    @property
    def spec(self) -> str:
        """The text from which `parse_policy` makes this policy again."""
        params = ",".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))
        return f"{self.name}:{params}" if params else self.name


@dataclass(frozen=True)
class FixedRows(RecomputePolicy):
    """A policy that chooses its rows before the first layer runs, and keeps them through all layers."""

    @abstractmethod
    def own_rows(self, segments: Sequence[Segment]) -> Iterable[int]:
        """Return absolute rows of segments that have a source, in any order."""

    def select(self, segments: Sequence[Segment]) -> list[int]:
        """Return all rows to compute, ascending: this policy's and those that must always be computed."""
        return sorted({*always_computed(segments), *self.own_rows(segments)})

    def work(self, segments: Sequence[Segment], n_layers: int) -> list[int]:
        """Return how many rows of each segment are chosen."""
        rows = sorted(self.own_rows(segments))
        return [bisect_left(rows, span.stop) - bisect_left(rows, span.start) for span in spans_of(segments)]

    def finish(self, prefill: Prefill) -> Generation:
        """Compute the rows in one step."""
        return prefill.finish(self.select(still_stored(prefill)))


def still_stored(prefill: Prefill) -> list[Segment]:
    """Return the segments of a prompt; those whose rows are all computed by now are exact, so that nobody repairs them."""
    computed = set(prefill.computed)
    spans = spans_of(prefill.segments)
    done = [computed.issuperset(range(span.start, span.stop)) for span in spans]
    return [replace(s, is_exact=True) if is_done and not s.is_exact else s for s, is_done in zip(prefill.segments, done, strict=True)]


def repairable(segments: Sequence[Segment]) -> list[range]:
    """Return the rows of each stored segment that may differ from a prefill's: not of exact ones, nor of one at the prompt's start."""
    return [range(span.start, span.stop) for span in spans_of(segments) if _is_repairable(span)]


def work_share(segments: Sequence[Segment], ratio: float) -> list[int]:
    """Return what a share of the rows of each segment that needs repair comes to, and 0 for the others."""
    return [portion(ratio, span.stop - span.start) if _is_repairable(span) else 0 for span in spans_of(segments)]


def _is_repairable(span: Span) -> bool:
    return span.is_sourced and not span.is_exact and span.start > 0


def portion(ratio: float, n_rows: int) -> int:
    """Return how many of n_rows a ratio is, rounded half up."""
    return math.floor(ratio * n_rows + 0.5)


def check_ratio(policy: str, name: str, ratio: float) -> None:
    """Raise InvalidInputError unless a share of rows is within 0 and 1."""
    if not 0 <= ratio <= 1:
        raise InvalidInputError(f"{policy}: {name} must be within 0 and 1, got {ratio}")


def find_policy(name: str, **params: Param) -> RecomputePolicy:
    """Return the policy of that name; unknown names and parameters raise InvalidInputError with those that are known."""
    try:
        found: type[RecomputePolicy] = find(_PACKAGE, name)
    except UnsupportedError as error:
        raise InvalidInputError(f"no recompute policy {name!r}; known: {', '.join(known_names(_PACKAGE))}") from error
    types = {field.name: type(field.default) for field in fields(found)}
    if unknown := sorted(set(params) - set(types)):
        raise InvalidInputError(f"policy {name} has no parameter {unknown[0]!r}; known: {', '.join(types) or 'none'}")
    for key, value in params.items():
        if type(value) is not types[key]:
            raise InvalidInputError(f"policy {name}: {key} must be of type {types[key].__name__}, got {value!r}")
    return found(**params)


def parse_policy(spec: str) -> RecomputePolicy:
    """Return the policy of a text such as "none", "first_k" or "first_k:k=8"."""
    name, _, rest = spec.partition(":")
    params: dict[str, Param] = {}
    for item in rest.split(",") if rest else []:
        key, equals, value = item.partition("=")
        if not equals or not key or not value:
            raise InvalidInputError(f"policy {spec!r}: {item!r} is not of the form parameter=value, as in first_k:k=8")
        params[key] = _number_or_text(value)
    return find_policy(name, **params)


def _number_or_text(value: str) -> Param:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
