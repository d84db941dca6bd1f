"""Name and fit the tables that the calibrated stages of a codec need."""

from __future__ import annotations

from kvstore.core.errors import NotFoundError
from kvworker.calibrate.files import latest_statistics
from kvworker.calibrate.statistics import Statistics
from kvworker.codec.artifact import Artifact
from kvworker.codec.artifacts import Artifacts
from kvworker.codec.pipeline import Pipeline
from kvworker.codec.stages import Calibrated


def complete(codec: Pipeline, artifacts: Artifacts, statistics: Statistics | None = None) -> Pipeline:
    """Return a codec ready for use: calibrated stages that name no artifact get the latest one that was fitted for them.

    Where there is none it is fitted, with `statistics` or with those that were kept last, and kept. Without any raises NotFoundError, which
    says to calibrate.
    """
    return Pipeline(tuple(_named(s, artifacts, statistics) if isinstance(s, Calibrated) else s for s in codec.stages)).bound(artifacts)


def _named(stage: Calibrated, artifacts: Artifacts, statistics: Statistics | None) -> Calibrated:
    """Return a stage that names its artifact."""
    if stage.artifact:
        return stage
    digest = artifacts.latest(stage.subject)
    return stage.naming(digest or fit(stage, artifacts, statistics))


def fit(stage: Calibrated, artifacts: Artifacts, statistics: Statistics | None = None) -> str:
    """Fit the tables of a stage and keep them; return their digest. Raises NotFoundError where there are no statistics."""
    seen = statistics or latest_statistics(artifacts)
    if seen is None:
        raise NotFoundError(f"codec stage {stage.name} was not calibrated for this model: run `larder calibrate`")
    return artifacts.add(Artifact(seen.namespace, stage.subject, stage.fit(seen)))
