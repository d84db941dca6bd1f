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
    """The ordered stages of a codec and the digest of the calibration artifact they use ("" for none)."""

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
