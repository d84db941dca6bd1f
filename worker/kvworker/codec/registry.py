"""Find the stages and the codec that a name, or a manifest, stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache

from kvstore.codecs import Stage, find_byte_stage
from kvstore.core.discovery import find, known_names
from kvstore.core.errors import InvalidInputError, UnsupportedError
from kvstore.core.stages import PipelineSpec, StageSpec
from kvworker.codec.artifacts import Artifacts
from kvworker.codec.pipeline import Pipeline

TRANSFORMS = "kvworker.methods.transform"
QUANTIZERS = "kvworker.methods.quantize"
BYTE_STAGES = "kvstore.codecs"

CodecOf = Callable[[PipelineSpec], Pipeline]
"""Finds the codec, ready for use, that a manifest names."""


def pipeline_of(codec: PipelineSpec) -> Pipeline:
    """Return the pipeline that a manifest names, without the tables of calibrated stages, or raise UnsupportedError."""
    return _pipeline_of(codec, tuple(type(value) for stage in codec.stages for _, value in stage.params))


def bound_pipeline_of(artifacts: Artifacts, codec: PipelineSpec) -> Pipeline:
    """Return the pipeline that a manifest names with the tables of its calibrated stages; raises what `Artifacts.find` raises, too."""
    return pipeline_of(codec).bound(artifacts)


@lru_cache(maxsize=64)
def _pipeline_of(codec: PipelineSpec, types: Sequence[type]) -> Pipeline:
    """Build a pipeline; `types` keeps 1, 1.0 and True apart, which are equal as cache keys."""
    try:
        pipeline = Pipeline(tuple(_stage_of(stage) for stage in codec.stages))
    except InvalidInputError as error:
        raise UnsupportedError(f"codec {codec.label} is not known here: {error}") from error
    if pipeline.spec != codec:
        raise UnsupportedError(f"codec {codec.label}: this version needs {pipeline.spec}, the chunk has {codec}")
    return pipeline


def _stage_of(spec: StageSpec) -> Stage:
    """Return the stage that a spec names; UnsupportedError lists the known ones."""
    return find_stage_class(spec.name).build(dict(spec.params))


@cache
def find_stage_class(name: str) -> type[Stage]:
    """Return a stage's class by its name: a transform, a quantizer or a byte stage; UnsupportedError lists the known byte stages."""
    for package in (TRANSFORMS, QUANTIZERS):
        if name in known_names(package):
            found: type[Stage] = find(package, name)
            return found
    return find_byte_stage(name)


def declared_quality(codec: PipelineSpec) -> str:
    """Return what a codec loses: "lossless", or "unmeasured" until a measurement is declared."""
    return "lossless" if pipeline_of(codec).traits.is_bit_exact else "unmeasured"
