"""Chunks that stay coded until they are written into a request's cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from kvkernels.place import Turn
from kvworker.chunk import ChunkSpec, KVChunk
from kvworker.codec.stages import Fields, Placing, PlacingTransform


@dataclass(frozen=True, eq=False)
class CodedChunk:
    """A chunk of one layer group as it is stored, on a GPU; implements `kvworker.engine.engine.CodedKV`.

    Raises ValueError where tables of its quantizer do not fit its shape.

    Parameters
    ----------
    spec : ChunkSpec
        Its shape once decoded.
    transforms, quantizer : stages
        What wrote the fields.
    decode : callable
        Returns the chunk without its need.
    """

    fields: Fields
    spec: ChunkSpec
    transforms: tuple[PlacingTransform, ...]
    quantizer: Placing
    decode: Callable[[], KVChunk]
    need: torch.Tensor | None = None

    def __post_init__(self) -> None:
        spec = self.spec
        for stage in self.transforms:
            spec = stage.inner(spec)
        self.quantizer.check(spec)

    @cached_property
    def decoded(self) -> KVChunk:
        """The chunk itself."""
        return replace(self.decode(), need=self.need)

    def write(self, turn: Turn, rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write K, turned, and V of the last layers to rows of their caches; see `CodedKV.write`."""
        first = self.spec.n_layers - len(keys)
        fields = {name: field[first:] for name, field in self.fields.items()}
        spec = replace(self.spec, n_layers=len(keys), layers=self.spec.layers[first:])
        self._write_side(fields, spec, "k", turn, rows, keys)
        self._write_side(fields, spec, "v", None, rows, values)

    def _write_side(self, fields: Fields, spec: ChunkSpec, side: str, turn: Turn | None, rows: torch.Tensor, cache: torch.Tensor) -> None:
        """Write K or V."""
        for stage in self.transforms:
            if not spec.n_tokens:
                return
            turn, rows = stage.place(fields, spec, side, turn, rows, cache)
            spec = stage.inner(spec)
        if spec.n_tokens:
            self.quantizer.place(fields, spec, side, turn, rows, cache)
