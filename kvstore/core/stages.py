"""Names of what a codec pipeline does, without the tensors: enough to tell variants apart and to find the code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kvstore.core import canonical
from kvstore.core.errors import FormatError

Param = str | int | float | bool


@dataclass(frozen=True)
class Traits:
    """What a stage of a codec, or a whole codec, lets its users do.

    Parameters
    ----------
    is_bit_exact : bool
        Every bit comes back.
    is_relocatable : bool
        What comes back may be rotated to any position.
    is_layer_streamable : bool
        A layer group is decoded without the bytes of the others.
    is_tp_splittable : bool
        The KV heads of a layer are coded apart from each other.
    is_token_granular : bool
        A token is decoded without the bytes of the tokens beside it.
    needs_artifact : bool
        Tables that were calibrated for the model are needed to encode and to decode.
    is_query_aware : bool
        What is kept depends on the queries of what was encoded: for text that is read on where it stands, not for passages of any prompt.
    """

    is_bit_exact: bool = False
    is_relocatable: bool = True
    is_layer_streamable: bool = True
    is_tp_splittable: bool = True
    is_token_granular: bool = False
    needs_artifact: bool = False
    is_query_aware: bool = False

    def then(self, other: Traits) -> Traits:
        """Return the traits of two stages one after the other."""
        return Traits(
            is_bit_exact=self.is_bit_exact and other.is_bit_exact,
            is_relocatable=self.is_relocatable and other.is_relocatable,
            is_layer_streamable=self.is_layer_streamable and other.is_layer_streamable,
            is_tp_splittable=self.is_tp_splittable and other.is_tp_splittable,
            is_token_granular=self.is_token_granular and other.is_token_granular,
            needs_artifact=self.needs_artifact or other.needs_artifact,
            is_query_aware=self.is_query_aware or other.is_query_aware,
        )


@dataclass(frozen=True)
class StageSpec:
    """One stage of a pipeline: the method's name and its parameters, sorted by name."""

    name: str
    params: tuple[tuple[str, Param], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the stage as it stands in a manifest."""
        return {"name": self.name, "params": dict(self.params)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> StageSpec:
        """Read a stage of a manifest; other fields or types raise FormatError."""
        params = value.get("params")
        if set(value) != {"name", "params"} or not isinstance(value["name"], str) or not isinstance(params, dict):
            raise FormatError(f"a codec stage has a name and params, got {sorted(value)}")
        if not all(isinstance(v, str | int | float) for v in params.values()):
            raise FormatError(f"parameters of codec stage {value['name']} must be numbers, strings or booleans")
        return cls(value["name"], tuple(sorted(params.items())))


@dataclass(frozen=True)
class PipelineSpec:
    """The ordered stages of a codec; `artifact` is always "": a calibrated stage names its artifact among its parameters."""

    stages: tuple[StageSpec, ...]
    artifact: str = ""

    def variant(self) -> bytes:
        """Return the fingerprint (32 bytes) that tells this way of storing from every other."""
        return self._variant

    @cached_property
    def _variant(self) -> bytes:
        return canonical.digest({"larder": "variant/1", "stages": [s.to_json() for s in self.stages], "artifact": self.artifact})

    @property
    def label(self) -> str:
        """A short name for people, such as "kivi+zstd"."""
        return "+".join(stage.name for stage in self.stages)
