"""Statistics as an artifact, so that they are kept, verified and found as tables are."""

from __future__ import annotations

import torch

from kvstore.core.errors import FormatError
from kvstore.core.identity import ModelIdentity
from kvstore.core.stages import StageSpec
from kvworker.calibrate.statistics import LayerStatistics, SideStatistics, Statistics
from kvworker.chunk import DTYPES
from kvworker.codec.artifact import Artifact
from kvworker.codec.artifacts import Artifacts
from kvworker.codec.stages import Tables

SUBJECT = StageSpec("statistics")
_SIDE = ("sample", "low", "high", "mean", "square")
_LAYER = ("q_square", "mass", "mass_square", "place")
_GRAMS = ("k_gram", "v_gram")


def save_statistics(statistics: Statistics, identity: ModelIdentity, artifacts: Artifacts) -> str:
    """Keep statistics; return their digest. Samples are kept in the model's dtype, which holds them exactly."""
    dtype = DTYPES[identity.dtype]
    by_layer = {layer: _tables(own, statistics.n_tokens, dtype) for layer, own in statistics.layers.items()}
    return artifacts.add(Artifact(statistics.namespace, SUBJECT, by_layer))


def latest_statistics(artifacts: Artifacts) -> Statistics | None:
    """Return the statistics that were kept last, or None; raises FormatError for tables that are none."""
    digest = artifacts.latest(SUBJECT)
    if digest is None:
        return None
    artifact = artifacts.find(digest, SUBJECT)
    try:
        layers = {layer: _layer_of(tables) for layer, tables in artifact.by_layer.items()}
        n_tokens = int(next(iter(artifact.by_layer.values()))["n_tokens"])
    except (KeyError, StopIteration, ValueError) as error:
        raise FormatError(f"artifact {digest[:16]} holds no statistics of this version: run `larder calibrate` again") from error
    return Statistics(artifact.namespace, n_tokens, layers)


def _tables(layer: LayerStatistics, n_tokens: int, dtype: torch.dtype) -> Tables:
    """Return the tables of a layer."""
    sides = {f"{side}.{name}": getattr(seen, name) for side, seen in (("k", layer.k), ("v", layer.v)) for name in _SIDE}
    samples = {f"{side}.sample": sides[f"{side}.sample"].to(dtype) for side in "kv"}
    grams = {name: getattr(layer, name) for name in _GRAMS if getattr(layer, name) is not None}
    return {**sides, **samples, **{name: getattr(layer, name) for name in _LAYER}, **grams, "n_tokens": torch.tensor([n_tokens])}


def _layer_of(tables: Tables) -> LayerStatistics:
    """Return a layer from its tables."""
    k, v = (SideStatistics(*(tables[f"{side}.{name}"].float() for name in _SIDE)) for side in "kv")
    return LayerStatistics(k, v, *(tables[name] for name in _LAYER), *(tables.get(name) for name in _GRAMS))
