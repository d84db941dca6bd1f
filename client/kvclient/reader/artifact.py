"""Calibrated tables from the blob of an artifact; written from section 5.1 of `proto/FORMAT.md`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvstore.core import canonical
from kvstore.core.blob import Buffer, verify_blob
from kvstore.core.errors import CorruptError, FormatError
from kvstore.core.key import Kind
from kvstore.core.manifest import Manifest, PartSpec
from kvstore.core.stages import StageSpec

Tables = Mapping[str, NDArray[Any]]
STORED_TYPES = {"uint8": "u1", "int8": "i1", "float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "int32": "<i4", "int64": "<i8"}


@dataclass(frozen=True, eq=False)
class Artifact:
    """The tables of one stage for one model, by layer and name; they are views of the blob.

    Parameters
    ----------
    namespace : bytes
        Of the model.
    subject : StageSpec
        The stage, with those of its parameters that decided the tables.
    digest : str
        Its name, in hex.
    by_layer : mapping of int to tables
    """

    namespace: bytes
    subject: StageSpec
    digest: str
    by_layer: Mapping[int, Tables]

    def table(self, layer: int, name: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return a table of one layer; -1 in `shape` stands for any length. Raises FormatError where there is none of this kind."""
        found = self.by_layer.get(layer, {}).get(name)
        if found is None or found.dtype != STORED_TYPES[dtype] or not _fits(found.shape, shape):
            got = "none" if found is None else f"{found.dtype} {found.shape}"
            raise FormatError(f"artifact {self.digest[:16]}: layer {layer} needs a table {name} of {dtype} {shape}, got {got}")
        return found


def read_artifact(data: Buffer) -> Artifact:
    """Read the blob of an artifact from outside, every byte of it verified.

    Raises FormatError for what is no artifact and CorruptError where a digest does not match. Memory beyond `data` is bounded by the length
    of its manifest.
    """
    manifest, view = verify_blob(data).manifest, memoryview(data).cast("B")
    if manifest.kind is not Kind.ARTIFACT or len(manifest.codec.stages) != 1:
        raise FormatError(f"the blob holds {manifest.kind.name.lower()} KV coded as {manifest.codec.label}, not an artifact")
    layers = [part.layers for part in manifest.parts]
    if any(len(own) != 1 for own in layers) or layers != sorted(set(layers)):
        raise FormatError(f"an artifact has one part per layer, ascending; this one has {layers}")
    by_layer = {part.layers[0]: _tables(part, view[part.offset : part.offset + part.nbytes]) for part in manifest.parts}
    if (digest := _digest(manifest, by_layer)) != manifest.content.hex():
        raise CorruptError(f"the artifact is named {manifest.content.hex()[:16]} but its tables have the digest {digest[:16]}")
    return Artifact(manifest.namespace, manifest.codec.stages[0], digest, by_layer)


def _digest(manifest: Manifest, by_layer: Mapping[int, Tables]) -> str:
    """Return the SHA-256 in hex over namespace, subject, and names, types, shapes and bytes of all tables."""
    head = {
        "larder": "artifact/1",
        "namespace": manifest.namespace.hex(),
        "subject": manifest.codec.stages[0].to_json(),
        "layers": [[part.layers[0], [[f.name, f.dtype, list(f.shape)] for f in part.fields]] for part in manifest.parts],
    }
    state = hashlib.sha256(canonical.dumps(head))
    for tables in by_layer.values():
        for table in tables.values():
            state.update(table.reshape(-1).view(np.uint8).data)
    return state.hexdigest()


def _tables(part: PartSpec, view: memoryview) -> Tables:
    """Return the tables of a layer."""
    names = [field.name for field in part.fields]
    if any(field.packing != "raw" or not field.raw_nbytes for field in part.fields) or names != sorted(names):
        raise FormatError(f"tables are raw, not empty and sorted by name; layer {part.layers[0]} has {part.fields}")
    return {f.name: np.frombuffer(view[f.offset : f.offset + f.nbytes], STORED_TYPES[f.dtype]).reshape(f.shape) for f in part.fields}


def _fits(found: tuple[int, ...], asked: tuple[int, ...]) -> bool:
    """Tell whether a shape is the one that was asked for."""
    return len(found) == len(asked) and all(size in (-1, own) for own, size in zip(found, asked, strict=True))
