"""Norm and Lloyd-Max codes of a randomly rotated vector: the fewest bits without calibration, any token decodes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvkernels import turboquant
from kvstore.core.errors import InvalidInputError
from kvstore.core.stages import Traits
from kvworker.chunk import DTYPES, ChunkSpec, KVChunk
from kvworker.codec.stages import Fields, Layout, Quantizer


@dataclass(frozen=True)
class Turboquant(Quantizer):
    """Store each vector's norm, and its direction as codes of the best levels for a normal variable after signs and a Hadamard rotation.

    The squared error is 0.1175, 0.0345 or 0.0095 of the vector's square for 2, 3 or 4 bits, whatever the vector. A value of 16 bits takes
    bits + 16 / D bits where D is a power of two; other heads are cut into blocks that are.

    Paper: TurboQuant (ICLR 2026, arXiv 2504.19874), the variant for squared error; keys here are before RoPE.

    Parameters
    ----------
    k_bits, v_bits : int
        1, 2, 3 or 4. Grouped-query models need 4 for keys.
    """

    name: ClassVar[str] = "turboquant"
    traits: ClassVar[Traits] = Traits(is_token_granular=True)
    k_bits: int = 4
    v_bits: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if {self.k_bits, self.v_bits} - set(turboquant.LEVELS):
            raise InvalidInputError(f"turboquant: {self.k_bits} and {self.v_bits} bits; choose bits in {tuple(turboquant.LEVELS)}")

    def layout(self, spec: ChunkSpec) -> Layout:
        """Return codes uint8 (L, H, T, bytes) and norm (L, H, T, blocks) in the model's dtype, for k and for v."""
        fields: dict[str, tuple[str, tuple[int, ...]]] = {}
        for side, dim, bits in self._sides(spec):
            codes, norm = turboquant.stored_shapes((spec.n_layers, spec.kv_heads, spec.n_tokens, dim), bits)
            fields[f"{side}.codes"], fields[f"{side}.norm"] = ("uint8", codes), (spec.dtype, norm)
        return fields

    def encode(self, chunk: KVChunk, spec: ChunkSpec) -> Fields:
        """Return codes and norms of k and of v."""
        fields: Fields = {}
        for (side, _, bits), x in zip(self._sides(spec), (chunk.k, chunk.v), strict=True):
            fields[f"{side}.codes"], fields[f"{side}.norm"] = turboquant.encode(x, bits)
        return fields

    def decode(self, fields: Fields, spec: ChunkSpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Return k and v, rotated back and rounded to the model's dtype."""
        k, v = (
            turboquant.decode(fields[f"{side}.codes"], fields[f"{side}.norm"], dim, bits, DTYPES[spec.dtype])
            for side, dim, bits in self._sides(spec)
        )
        return k, v

    def _sides(self, spec: ChunkSpec) -> tuple[tuple[str, int, int], ...]:
        """Return name, head dimension and bits of K and of V."""
        return ("k", spec.k_dim, self.k_bits), ("v", spec.v_dim, self.v_bits)
