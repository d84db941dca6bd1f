"""Which artifacts a chunk needs, and where the store has them; imports no numpy, so that fetching does not wait for it."""

from __future__ import annotations

from kvstore.core.key import ChunkKey
from kvstore.core.manifest import Manifest
from kvstore.core.stages import PipelineSpec, StageSpec

FITTED = {
    "cachegen": ("coarse", "delta", "fine"),
    "cq": ("bits", "couple"),
    "csr": ("atoms", "k_split", "k_steps", "v_split", "v_steps"),
    "kvquant": ("k_bits", "outliers", "v_bits"),
    "lorc": ("basis", "least", "most", "run"),
    "pca": ("k_ratio", "over", "ratio"),
    "skvq": ("group", "k_levels", "v_levels"),
    "think": ("drop",),
}
"""The stages that need tables, and their parameters that decide them."""


def subject_of(stage: StageSpec) -> StageSpec:
    """Return what the tables of a stage were fitted for."""
    return StageSpec(stage.name, tuple((name, value) for name, value in stage.params if name in FITTED[stage.name]))


def artifact_keys(manifest: Manifest) -> tuple[ChunkKey, ...]:
    """Return the keys of the artifacts that a chunk needs; stages that are not known here, and digests that are none, need nothing."""
    found = []
    for stage in manifest.codec.stages:
        digest = digest_of(stage)
        if stage.name in FITTED and len(digest) == 32:
            found.append(ChunkKey(manifest.namespace, digest, PipelineSpec((subject_of(stage),)).variant()))
    return tuple(found)


def digest_of(stage: StageSpec) -> bytes:
    """Return the digest of the artifact that a stage names; b"" for none, or for what is no digest."""
    named = dict(stage.params).get("artifact")
    try:
        digest = bytes.fromhex(named) if isinstance(named, str) else b""
    except ValueError:
        return b""
    return digest if digest.hex() == named and len(digest) == 32 else b""
