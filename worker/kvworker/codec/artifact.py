"""Calibrated tables as bytes: a Larder blob of kind "artifact" with one part per model layer, verified before anything is used of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from kvstore.core import canonical
from kvstore.core.blob import Buffer, build_blob, verify_blob
from kvstore.core.errors import CorruptError, FormatError, InvalidInputError
from kvstore.core.key import ChunkKey, Kind
from kvstore.core.manifest import ITEM_NBYTES, FieldSpec, Manifest, PartSpec
from kvstore.core.stages import PipelineSpec, StageSpec
from kvworker.codec.stages import Tables
from kvworker.codec.tensor_bytes import bytes_of, tensor_of


@dataclass(frozen=True, eq=False)
class Artifact:
    """The tables that a stage was fitted with for one model.

    Parameters
    ----------
    namespace : bytes
        Of the model identity whose KV was looked at.
    subject : StageSpec
        The stage and those of its parameters that decide the tables; see `Calibrated.subject`.
    by_layer : mapping of int to tables
        Tensors by name, for every model layer that has some.
    """

    namespace: bytes
    subject: StageSpec
    by_layer: Mapping[int, Tables]

    @cached_property
    def digest(self) -> str:
        """The sha256 in hex over namespace, subject, and names, types, shapes and bytes of all tables."""
        parts = self._parts
        head = {
            "larder": "artifact/1",
            "namespace": self.namespace.hex(),
            "subject": self.subject.to_json(),
            "layers": [[p.layers[0], [[f.name, f.dtype, list(f.shape)] for f in p.fields]] for p in parts],
        }
        state = hashlib.sha256(canonical.dumps(head))
        for tables in self._tables:
            for table in tables.values():
                state.update(bytes_of(table))
        return state.hexdigest()

    @property
    def key(self) -> ChunkKey:
        """Where the store keeps it."""
        return artifact_key(self.namespace, self.subject, self.digest)

    @cached_property
    def _tables(self) -> list[Tables]:
        """The tables of the layers, ascending, sorted by name."""
        return [dict(sorted(tables.items())) for _, tables in sorted(self.by_layer.items())]

    @cached_property
    def _parts(self) -> tuple[PartSpec, ...]:
        """One part per layer, not yet placed; a table without values raises InvalidInputError."""
        layers = sorted(self.by_layer)
        return tuple(
            PartSpec(
                n,
                (layer,),
                1,
                1,
                1,
                tuple(_field(f"{self.subject.name}: table {name} of layer {layer}", name, t) for name, t in tables.items()),
            )
            for n, (layer, tables) in enumerate(zip(layers, self._tables, strict=True))
        )

    def to_bytes(self) -> bytearray:
        """Return the whole blob."""
        codec = PipelineSpec((self.subject,))
        manifest = Manifest(self.namespace, bytes.fromhex(self.digest), Kind.ARTIFACT, b"", 1, "float32", codec, self._parts)
        return build_blob(manifest, [[bytes_of(table) for table in tables.values()] for tables in self._tables])

    @classmethod
    def from_bytes(cls, data: Buffer) -> Artifact:
        """Read a blob from outside; raises FormatError for what is no artifact and CorruptError where a digest does not match.

        The tables alias `data`. Memory beyond it is bounded by the manifest's length.
        """
        manifest = verify_blob(data).manifest
        view = memoryview(data).cast("B")
        return cls.from_parts(manifest, [view[part.offset : part.offset + part.nbytes] for part in manifest.parts])

    @classmethod
    def from_parts(cls, manifest: Manifest, parts: Sequence[Buffer]) -> Artifact:
        """Read the verified parts of a blob; see `from_bytes`."""
        if manifest.kind is not Kind.ARTIFACT or len(manifest.codec.stages) != 1:
            raise FormatError(f"the blob holds {manifest.kind.name.lower()} KV coded as {manifest.codec.label}, not an artifact")
        layers = [part.layers for part in manifest.parts]
        if any(len(own) != 1 for own in layers) or layers != sorted(set(layers)):
            raise FormatError(f"an artifact has one part per layer, ascending; this one has {layers}")
        by_layer = {
            part.layers[0]: _read_tables(part, memoryview(data).cast("B")) for part, data in zip(manifest.parts, parts, strict=True)
        }
        artifact = cls(manifest.namespace, manifest.codec.stages[0], by_layer)
        if artifact.digest != manifest.content.hex():
            raise CorruptError(f"the artifact is named {manifest.content.hex()[:16]} but its tables have the digest {artifact.digest[:16]}")
        return artifact


def artifact_key(namespace: bytes, subject: StageSpec, digest: str) -> ChunkKey:
    """Return where the store keeps an artifact; a name that is not 64 lower-case hex digits raises InvalidInputError."""
    return ChunkKey(namespace, _digest_bytes(digest), PipelineSpec((subject,)).variant())


def _digest_bytes(digest: str) -> bytes:
    """Return the bytes of a digest in hex."""
    try:
        data = bytes.fromhex(digest)
    except ValueError:
        data = b""
    if len(data) != 32 or data.hex() != digest:
        raise InvalidInputError(f"an artifact is named by 64 lower-case hex digits, got {digest!r}")
    return data


def _field(place: str, name: str, table: object) -> FieldSpec:
    """Return the field of a table."""
    dtype = str(table.dtype).removeprefix("torch.") if isinstance(table, torch.Tensor) else type(table).__name__
    if not isinstance(table, torch.Tensor) or dtype not in ITEM_NBYTES or not table.numel():
        raise InvalidInputError(f"{place} must be a tensor of {', '.join(ITEM_NBYTES)} with at least one value, got {dtype}")
    return FieldSpec(name, dtype, tuple(table.shape))


def _read_tables(part: PartSpec, view: memoryview) -> Tables:
    """Return the tables of a verified part."""
    if any(f.packing != "raw" or not f.raw_nbytes for f in part.fields):
        raise FormatError(f"the tables of an artifact are raw and not empty; layer {part.layers[0]} has {part.fields}")
    return {f.name: tensor_of(view[f.offset : f.offset + f.nbytes], f.dtype, f.shape) for f in part.fields}
