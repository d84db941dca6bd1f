"""KIVI's codes with scales and zeros of a byte each, and values over ranges that lose least: half a bit a value less than `kivi`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvkernels import clipped, place
from kvworker.chunk import DTYPES, ChunkSpec, KVChunk
from kvworker.codec.stages import Fields, Layout
from kvworker.methods.quantize.kivi import SIDES, Kivi, shape_of

_FITS = {"k": clipped.whole_range, "v": clipped.least_squares}


@dataclass(frozen=True)
class Clipped(Kivi):
    """Round as `kivi` does, but with a byte for each scale and zero, and values over the range of each group that loses least.

    A byte counts from the least to the largest scale or zero of a channel of K, or of a group of channels of V, in the chunk; it moves a
    range by a few thousandths of itself, unless a token is fifty times as large as the others: keep first tokens with `sinks`. Where two
    bits round 32 values from the smallest to the largest, most lie between two levels; a range that cuts some off loses a fifth less.
    Keys keep their whole range: those that are looked for are the farthest. On the reference model, cutting off keys as well takes another
    tenth off the error of attention and costs a tenth of the answers. A value of 16 bits takes bits + 16 / group bits, of K 48 / T more.

    Paper: SKVQ (arXiv 2405.06219) for narrow parameters and searched ranges, KIVI (arXiv 2402.02750) for what shares one; the range is
    found by Lloyd's algorithm (IEEE Transactions on Information Theory 28, 1982) on evenly spaced levels.

    Parameters
    ----------
    bits : int
        2, 3 or 4.
    group : int
        Values that share a scale: 8, 16, 32, 64, 128 or 256.
    """

    name: ClassVar[str] = "clipped"
    bits: int = 2
    group: int = 32

    def layout(self, spec: ChunkSpec) -> Layout:
        """Return codes, scale and zero uint8, and ends (L, H, 3, columns) in the model's dtype, for k and for v."""
        fields: dict[str, tuple[str, tuple[int, ...]]] = {}
        for side, axis in SIDES:
            codes, of_groups, of_columns = clipped.stored_shapes(shape_of(spec, side), self.bits, self.group, axis)
            fields[f"{side}.codes"] = ("uint8", codes)
            fields[f"{side}.scale"] = fields[f"{side}.zero"] = ("uint8", of_groups)
            fields[f"{side}.ends"] = (spec.dtype, of_columns)
        return fields

    def encode(self, chunk: KVChunk, spec: ChunkSpec) -> Fields:
        """Return codes, scales, zeros and ends of k and of v."""
        fields: Fields = {}
        for (side, axis), x in zip(SIDES, (chunk.k, chunk.v), strict=True):
            parts = clipped.encode(x, self.bits, self.group, axis, _FITS[side])
            fields |= {f"{side}.{name}": part for name, part in parts._asdict().items()}
        return fields

    def decode(self, fields: Fields, spec: ChunkSpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Return k and v, code times scale plus zero rounded to the model's dtype."""
        k, v = (
            clipped.decode(_parts(fields, side), shape_of(spec, side), self.bits, self.group, axis, DTYPES[spec.dtype])
            for side, axis in SIDES
        )
        return k, v

    def place(
        self, fields: Fields, spec: ChunkSpec, side: str, turn: place.Turn | None, rows: torch.Tensor, cache: torch.Tensor
    ) -> None:  # fmt: skip
        """Write code times scale plus zero, K turned, to rows of a cache."""
        codes, *stored = _parts(fields, side)
        scale, zero = clipped.parameters(*stored)
        wide = {f"{side}.codes": codes, f"{side}.scale": scale, f"{side}.zero": zero}
        super().place(wide, spec, side, turn, rows, cache)


def _parts(fields: Fields, side: str) -> clipped.Parts:
    """Return what is stored of k or v."""
    return clipped.Parts(*(fields[f"{side}.{name}"] for name in clipped.Parts._fields))
