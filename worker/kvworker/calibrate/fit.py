"""Name and fit the tables that the calibrated stages of a codec need."""

from __future__ import annotations

from kvstore.core.errors import NotFoundError
from kvworker.calibrate.statistics import Statistics
from kvworker.codec.artifact import Artifact
from kvworker.codec.artifacts import Artifacts
from kvworker.codec.pipeline import Pipeline
from kvworker.codec.stages import Calibrated


def complete(codec: Pipeline, artifacts: Artifacts, statistics: Statistics | None = None) -> Pipeline:
    """Return a codec ready for use: calibrated stages that name no artifact get the latest one that was fitted for them.

    Where there is none it is fitted with `statistics` and kept; without them raises NotFoundError, which says to calibrate.
    """
    return Pipeline(tuple(_named(s, artifacts, statistics) if isinstance(s, Calibrated) else s for s in codec.stages)).bound(artifacts)


def _named(stage: Calibrated, artifacts: Artifacts, statistics: Statistics | None) -> Calibrated:
    """Return a stage that names its artifact."""
    if stage.artifact:
        return stage
    digest = artifacts.latest(stage.subject)
    if digest is None:
        if statistics is None:
            raise NotFoundError(f"codec stage {stage.name} was not calibrated for this model: run `larder calibrate`")
        digest = artifacts.add(Artifact(statistics.namespace, stage.subject, stage.fit(statistics)))
    return stage.naming(digest)
