"""The stages of a chunk's codec, each known, with parameters that it may have and the tables that it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from kvclient.reader.artifact import Artifact
from kvclient.reader.keys import FITTED, subject_of
from kvstore.core.errors import IdentityError, NotFoundError, UnsupportedError
from kvstore.core.manifest import Manifest
from kvstore.core.stages import Param, StageSpec

Known = Mapping[str, Mapping[str, Sequence[Param]]]
"""Stages by name, and the values that each of their parameters may have."""


class Step(NamedTuple):
    """A stage that can be undone."""

    name: str
    params: Mapping[str, Param]
    artifact: Artifact | None

    def number(self, name: str) -> int:
        """Return a parameter that is a whole number."""
        return int(self.params[name])

    def table(self, layer: int, name: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return a calibrated table; see `Artifact.table`."""
        assert self.artifact is not None  # `steps_of` makes no other step of a stage that has tables
        return self.artifact.table(layer, name, dtype, shape)


def steps_of(manifest: Manifest, stages: Sequence[StageSpec], known: Known, artifacts: Mapping[str, Artifact]) -> list[Step]:
    """Return steps of stages; raises UnsupportedError for unknown parameters, and what `_artifact_of` raises."""
    return [_step_of(manifest, stage, known[stage.name], artifacts) for stage in stages]


def _step_of(manifest: Manifest, stage: StageSpec, expected: Mapping[str, Sequence[Param]], artifacts: Mapping[str, Artifact]) -> Step:
    """Return the step of one stage."""
    params, needs_tables = dict(stage.params), stage.name in FITTED
    if set(params) - ({"artifact"} if needs_tables else set()) != set(expected) or not all(
        _is_in(params[k], expected[k]) for k in expected
    ):
        raise UnsupportedError(f"codec {manifest.codec.label!r} with parameters {params} is not known here; known: {dict(expected)}")
    return Step(stage.name, params, _artifact_of(manifest, stage, artifacts) if needs_tables else None)


def _is_in(value: Param, values: Sequence[Param]) -> bool:
    """Tell whether a parameter is one of these, and of their type: true is not 1."""
    return type(value) in (int, str) and value in values


def _artifact_of(manifest: Manifest, stage: StageSpec, artifacts: Mapping[str, Artifact]) -> Artifact:
    """Return the artifact that a stage names: NotFoundError without it, IdentityError for one of another stage or model."""
    digest = str(dict(stage.params).get("artifact", ""))
    artifact = artifacts.get(digest)
    if artifact is None:
        raise NotFoundError(
            f"codec stage {stage.name} needs artifact {digest[:16] or '(none named)'}, which is not at hand: fetch it first"
        )
    if (artifact.namespace, artifact.subject) != (manifest.namespace, subject_of(stage)):
        raise IdentityError(
            f"artifact {digest[:16]} was fitted for {artifact.subject} of model {artifact.namespace.hex()[:16]}, "
            f"but {subject_of(stage)} of model {manifest.namespace.hex()[:16]} is asked for"
        )
    return artifact
