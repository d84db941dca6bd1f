"""A model's own queries, kept to judge errors of keys and values by."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from kvstore.core.stages import StageSpec
from kvworker.codec.artifact import Artifact
from kvworker.codec.artifacts import Artifacts

SUBJECT = StageSpec("probes")


def save_probes(probes: Mapping[int, torch.Tensor], namespace: bytes, artifacts: Artifacts) -> str:
    """Keep the probes of a study; return their digest."""
    return artifacts.add(Artifact(namespace, SUBJECT, {layer: {"q": q} for layer, q in probes.items()}))


def latest_probes(artifacts: Artifacts) -> Mapping[int, torch.Tensor]:
    """Return queries (Q, S, D) by layer, before RoPE and scaled, as they were kept last; empty where none were."""
    digest = artifacts.latest(SUBJECT)
    if digest is None:
        return {}
    return {layer: tables["q"] for layer, tables in artifacts.find(digest, SUBJECT).by_layer.items() if "q" in tables}
