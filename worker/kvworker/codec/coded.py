"""Chunks that stay coded until they are written into a request's cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from kvkernels.place import Turn
from kvworker.chunk import ChunkSpec, KVChunk
from kvworker.codec.stages import Fields, Placing


@dataclass(frozen=True, eq=False)
class CodedChunk:
    """A chunk of one layer group as it is stored, on a GPU; implements `kvworker.engine.engine.CodedKV`.

    Parameters
    ----------
    spec : ChunkSpec
        Its shape once decoded.
    """

    fields: Fields
    spec: ChunkSpec
    quantizer: Placing
    need: torch.Tensor | None = None

    @cached_property
    def decoded(self) -> KVChunk:
        """The chunk itself."""
        return replace(KVChunk(*self.quantizer.decode(self.fields, self.spec)), need=self.need)

    def write(self, turn: Turn, rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write K, turned, and V of the last layers to rows of their caches; see `CodedKV.write`."""
        fields = {name: field[len(field) - len(keys) :] for name, field in self.fields.items()}
        self.quantizer.place(fields, "k", turn, rows, keys)
        self.quantizer.place(fields, "v", None, rows, values)
