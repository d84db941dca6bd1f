"""Recompute policies: which rows of a spliced prompt are computed again. One policy per file in `methods/recompute`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

from kvstore.core.discovery import find, known_names
from kvstore.core.errors import InvalidInputError, UnsupportedError
from kvworker.engine.engine import Segment, always_computed

_PACKAGE = "kvworker.methods.recompute"
Param = int | float | str


@dataclass(frozen=True)
class RecomputePolicy(ABC):
    """Chooses rows of stored segments; what no source can give is computed under every policy."""

    name: ClassVar[str]

    @abstractmethod
    def own_rows(self, segments: Sequence[Segment]) -> Iterable[int]:
        """Return absolute rows of segments that have a source, in any order."""

    def select(self, segments: Sequence[Segment]) -> list[int]:
        """Return all rows to compute, ascending: this policy's and those that must always be computed."""
        return sorted({*always_computed(segments), *self.own_rows(segments)})

    @property
    def spec(self) -> str:
        """The text from which `parse_policy` makes this policy again."""
        params = ",".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))
        return f"{self.name}:{params}" if params else self.name


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
