"""Asymmetric codes of 4, 3 or 2 bits: keys grouped along tokens per channel, values along channels per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvkernels import kivi, kivi_compiled, place
from kvstore.core.errors import InvalidInputError
from kvstore.core.stages import Traits
from kvworker.chunk import DTYPES, ChunkSpec, KVChunk
from kvworker.codec.stages import Compiled, Fields, Layout, Placing

SIDES: tuple[tuple[str, kivi.Axis], ...] = (("k", "token"), ("v", "channel"))


@dataclass(frozen=True)
class Kivi(Compiled, Placing):
    """Round keys per channel over groups of tokens and values per token over groups of channels.

    Keys have a few channels that are always large, so a scale must not mix channels; values have none, and a scale per token keeps the
    error of a token with its own attention weight. The error of one element is at most half its group's scale, before the cast back to
    the model dtype. The last group of an axis may be shorter than the others. A value of 16 bits takes bits + 32 / group bits.

    Paper: KIVI (ICML 2024, arXiv 2402.02750); keys here are before RoPE, and no tail stays unquantized.

    Parameters
    ----------
    bits : int
        2, 3 or 4.
    group : int
        Values that share a scale: 8, 16, 32, 64, 128 or 256. The paper's default is 32.
    """

    name: ClassVar[str] = "kivi"
    traits: ClassVar[Traits] = Traits()
    bits: int = 4
    group: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in kivi.BITS or self.group not in kivi.GROUPS:
            raise InvalidInputError(f"kivi: bits {self.bits}, group {self.group}; choose bits in {kivi.BITS} and group in {kivi.GROUPS}")

    def layout(self, spec: ChunkSpec) -> Layout:
        """Return codes uint8 and scale, zero in the model's dtype, for k and for v; codes are packed along the grouped axis."""
        fields: dict[str, tuple[str, tuple[int, ...]]] = {}
        for side, axis in SIDES:
            codes, parameters = kivi.stored_shapes(shape_of(spec, side), self.bits, self.group, axis)
            fields[f"{side}.codes"] = ("uint8", codes)
            fields[f"{side}.scale"] = fields[f"{side}.zero"] = (spec.dtype, parameters)
        return fields

    def encode(self, chunk: KVChunk, spec: ChunkSpec) -> Fields:
        """Return codes, scales and zeros of k and of v."""
        fields: Fields = {}
        for (side, axis), x in zip(SIDES, (chunk.k, chunk.v), strict=True):
            parts = kivi.encode(x, self.bits, self.group, axis)
            fields |= {f"{side}.{name}": part for name, part in zip(("codes", "scale", "zero"), parts, strict=True)}
        return fields

    def decode(self, fields: Fields, spec: ChunkSpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Return k and v, code times scale plus zero rounded to the model's dtype."""
        k, v = (self._decode_side(fields, spec, side, axis) for side, axis in SIDES)
        return k, v

    def _decode_side(self, fields: Fields, spec: ChunkSpec, side: str, axis: kivi.Axis) -> torch.Tensor:
        """Return k or v."""
        codes, scale, zero = (fields[f"{side}.{name}"] for name in ("codes", "scale", "zero"))
        return kivi.decode(codes, scale, zero, shape_of(spec, side), self.bits, self.group, axis, DTYPES[spec.dtype])

    @property
    def has_forms(self) -> bool:
        """4 bits in groups of 32 have."""
        return (self.bits, self.group) == (kivi_compiled.BITS, kivi_compiled.GROUP)

    def compile(self, spec: ChunkSpec) -> None:
        """Compile for the width of heads of K; codes of V do not depend on theirs."""
        kivi_compiled.prepare(spec.k_dim, DTYPES[spec.dtype])

    @property
    def is_placed(self) -> bool:
        """3 bits are not: their codes span bytes."""
        return self.bits != 3

    def place(
        self, fields: Fields, spec: ChunkSpec, side: str, turn: place.Turn | None, rows: torch.Tensor, cache: torch.Tensor
    ) -> None:  # fmt: skip
        """Write code times scale plus zero, K turned, to rows of a cache."""
        codes, scale, zero = (fields[f"{side}.{name}"].flatten(0, 1) for name in ("codes", "scale", "zero"))
        place.write_kivi((codes, scale, zero), self.bits, self.group, dict(SIDES)[side], turn, rows, cache.view(-1, *cache.shape[2:]))


def shape_of(spec: ChunkSpec, side: str) -> tuple[int, int, int, int]:
    """Return the shape of k or v."""
    return spec.n_layers, spec.kv_heads, spec.n_tokens, spec.k_dim if side == "k" else spec.v_dim
