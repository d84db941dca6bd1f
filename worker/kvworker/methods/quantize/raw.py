"""K and V as the model holds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvstore.core.stages import Traits
from kvworker.chunk import ChunkSpec, KVChunk
from kvworker.codec.stages import Fields, Layout, Quantizer


@dataclass(frozen=True)
class Raw(Quantizer):
    """Store every value in the model's dtype; decoding copies nothing.

    Paper: none.
    """

    name: ClassVar[str] = "raw"
    traits: ClassVar[Traits] = Traits(is_bit_exact=True, is_token_granular=True)

    def layout(self, spec: ChunkSpec) -> Layout:
        """Return values (L, H, T, D) in the model's dtype, for k and for v."""
        rows = (spec.n_layers, spec.kv_heads, spec.n_tokens)
        return {"k.values": (spec.dtype, (*rows, spec.k_dim)), "v.values": (spec.dtype, (*rows, spec.v_dim))}

    def encode(self, chunk: KVChunk, spec: ChunkSpec) -> Fields:
        """Return the tensors of the chunk themselves."""
        return {"k.values": chunk.k, "v.values": chunk.v}

    def decode(self, fields: Fields, spec: ChunkSpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the fields themselves."""
        return fields["k.values"], fields["v.values"]
