"""Artifacts that the client's reader cannot trust: whoever can store tables can make their digest match."""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvclient.reader import keys
from kvclient.reader.artifact import Artifact, read_artifact
from kvclient.reader.chunk import ChunkReader
from kvstore.core.blob import parse_header, verify_blob
from kvstore.core.errors import CorruptError, FormatError, IdentityError, KVError, NotFoundError
from kvstore.core.manifest import Manifest
from kvstore.core.stages import PipelineSpec, StageSpec
from kvworker.codec.artifact import Artifact as TorchArtifact
from kvworker.codec.registry import find_stage_class
from kvworker.codec.stages import Calibrated, Tables

GOLDEN = Path(__file__).parents[1] / "golden"
CHUNKS = [path.with_suffix(".chunk") for path in sorted(GOLDEN.glob("*.artifact"))]
Change = Callable[[torch.Tensor], torch.Tensor]
each_chunk = pytest.mark.parametrize("path", CHUNKS, ids=lambda path: path.stem)


def golden(path: Path) -> tuple[Manifest, list[bytes], TorchArtifact]:
    """Return the manifest and the parts of a chunk, and its artifact."""
    blob = path.read_bytes()
    manifest = verify_blob(blob).manifest
    return (
        manifest,
        [blob[p.offset : p.offset + p.nbytes] for p in manifest.parts],
        TorchArtifact.from_bytes(path.with_suffix(".artifact").read_bytes()),
    )


def renamed(manifest: Manifest, old: str, new: str) -> Manifest:
    """Return a manifest that names another artifact."""
    stages = tuple(
        StageSpec(stage.name, tuple((name, new if value == old else value) for name, value in stage.params))
        for stage in manifest.codec.stages
    )
    return replace(manifest, codec=PipelineSpec(stages))


def outcome(manifest: Manifest, parts: list[bytes], old: TorchArtifact, by_layer: Mapping[int, Tables]) -> str:
    """Decode a chunk under other tables; anything but a KVError escapes."""
    try:
        artifact = read_artifact(TorchArtifact(old.namespace, old.subject, by_layer).to_bytes())
        reader = ChunkReader(renamed(manifest, old.digest, artifact.digest), {artifact.digest: artifact})
        for index, data in enumerate(parts):
            reader.part(index, data)
    except KVError:
        return "refused"
    return "decoded"


def noise_like(table: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Return any bytes as a table of this kind."""
    nbytes = table.numel() * table.element_size()
    return torch.randint(0, 256, (nbytes,), generator=rng, dtype=torch.uint8).view(table.dtype).view(table.shape)


CHANGES: dict[str, Change] = {
    "negative": lambda table: -table.abs() - 1 if table.dtype != torch.uint8 else 255 - table,
    "huge": lambda table: torch.full_like(
        table, torch.iinfo(table.dtype).max if not table.is_floating_point() else torch.finfo(table.dtype).max
    ),
    "zero": torch.zeros_like,
    "longer": lambda table: torch.cat((table, table)),
    "shorter": lambda table: table[:1],
    "flat": lambda table: table.flatten(),
    "wider": lambda table: table.double().float() if table.dtype != torch.float32 else table.half(),
    "nan": lambda table: torch.full_like(table, float("nan")) if table.is_floating_point() else table,
}


@each_chunk
def test_tables_that_lie_decode_or_raise_a_typed_error_in_little_memory(path: Path) -> None:
    """Each table of each layer with each change, and with noise."""
    manifest, parts, artifact = golden(path)
    rng, before = torch.Generator().manual_seed(0), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = {"refused": 0, "decoded": 0}
    for layer, tables in artifact.by_layer.items():
        for name, table in tables.items():
            for changed in [*(change(table) for change in CHANGES.values()), noise_like(table, rng)]:
                by_layer = {**artifact.by_layer, layer: {**tables, name: changed}}
                outcomes[outcome(manifest, parts, artifact, by_layer)] += 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    assert min(outcomes.values()) > 0, outcomes


@each_chunk
def test_a_table_or_a_layer_that_is_missing_is_refused(path: Path) -> None:
    manifest, parts, artifact = golden(path)
    first, tables = next(iter(artifact.by_layer.items()))
    for name in tables if path.stem.split("-")[0] != "skvq" else [name for name in tables if not name.endswith("clip")]:
        without = {**artifact.by_layer, first: {other: table for other, table in tables.items() if other != name}}
        assert outcome(manifest, parts, artifact, without) == "refused"
    assert outcome(manifest, parts, artifact, {first + 77: tables}) == "refused"


def test_a_chunk_without_its_artifact_says_which_it_needs() -> None:
    manifest, _, artifact = golden(CHUNKS[0])
    with pytest.raises(NotFoundError, match=f"needs artifact {artifact.digest[:16]}"):
        ChunkReader(manifest)


def test_an_artifact_of_another_model_or_stage_is_refused() -> None:
    manifest, _, old = golden(CHUNKS[0])
    for other in (TorchArtifact(bytes(32), old.subject, old.by_layer), TorchArtifact(old.namespace, StageSpec("cq"), old.by_layer)):
        artifact = read_artifact(other.to_bytes())
        with pytest.raises(IdentityError, match="was fitted for"):
            ChunkReader(renamed(manifest, old.digest, artifact.digest), {artifact.digest: artifact})


def test_a_chunk_is_no_artifact_and_an_artifact_is_no_chunk() -> None:
    with pytest.raises(FormatError, match="not an artifact"):
        read_artifact(CHUNKS[0].read_bytes())
    with pytest.raises(FormatError, match="is an artifact"):
        ChunkReader(parse_header(CHUNKS[0].with_suffix(".artifact").read_bytes()).manifest)


@pytest.mark.parametrize("path", [CHUNKS[0].with_suffix(".artifact")], ids=lambda path: path.stem)
def test_a_flipped_bit_of_an_artifact_is_refused(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for at in range(0, len(data), 97):
        data[at] ^= 4
        with pytest.raises((FormatError, CorruptError)):
            read_artifact(data)
        data[at] ^= 4


def test_both_readers_read_the_same_tables() -> None:
    for path in CHUNKS:
        data = path.with_suffix(".artifact").read_bytes()
        mine, theirs = read_artifact(data), TorchArtifact.from_bytes(data)
        assert (mine.digest, mine.subject, mine.namespace) == (theirs.digest, theirs.subject, theirs.namespace)
        assert list_of(mine) == {layer: {name: t.tolist() for name, t in tables.items()} for layer, tables in theirs.by_layer.items()}


def list_of(artifact: Artifact) -> dict[int, dict[str, list[object]]]:
    """Return all tables as lists."""
    return {layer: {name: table.tolist() for name, table in tables.items()} for layer, tables in artifact.by_layer.items()}


@pytest.mark.parametrize("stage", keys.FITTED)
def test_the_parameters_that_decide_tables_are_those_of_the_worker(stage: str) -> None:
    """They make the key under which the store has an artifact."""
    method = find_stage_class(stage)
    assert issubclass(method, Calibrated)
    assert keys.FITTED[stage] == tuple(sorted(method.fitted))


@each_chunk
def test_the_keys_of_artifacts_are_where_the_worker_puts_them(path: Path) -> None:
    manifest, _, artifact = golden(path)
    assert keys.artifact_keys(manifest) == (artifact.key,)
