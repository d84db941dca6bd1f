"""KIVI: its presets, small groups behind a byte stage, and its bound; `clipped`, whose scales and zeros take a byte, has none."""

from __future__ import annotations

import torch

from kvworker.chunk import DTYPES, ChunkSpec
from tests.contracts.codecs import UNIT_ROUNDOFF, Bound, Case, Sizes


def sizes(bits: int, group: int) -> Sizes:
    """Return codes, scale and zero of K, grouped along tokens, then of V, grouped along channels."""

    def nbytes(spec: ChunkSpec) -> list[int]:
        rows, item, found = spec.n_layers * spec.kv_heads, DTYPES[spec.dtype].itemsize, []
        for along, across in ((spec.n_tokens, spec.k_dim), (spec.v_dim, spec.n_tokens)):
            parameters = rows * -(-along // group) * across * item
            found += [rows * -(-along * bits // 8) * across, parameters, parameters]
        return found

    return nbytes


def narrow_sizes(bits: int, group: int) -> Sizes:
    """Return codes, scale, zero and ends of K, then of V."""

    def nbytes(spec: ChunkSpec) -> list[int]:
        rows, item = spec.n_layers * spec.kv_heads, DTYPES[spec.dtype].itemsize
        k_codes, _, _, v_codes, _, _ = sizes(bits, group)(spec)
        k_groups, v_columns = -(-spec.n_tokens // group), -(-spec.v_dim // group)
        k, v = (rows * n for n in (k_groups * spec.k_dim, spec.n_tokens * v_columns))
        return [k_codes, k, k, 3 * item * rows * spec.k_dim, v_codes, v, v, 3 * item * rows * v_columns]

    return nbytes


def bound(bits: int, group: int) -> Bound:
    """Return half of each group's step; the scale is rounded down, which may leave the topmost level 15 units of its last place short."""

    def most(x: torch.Tensor, axis: int, dtype: str) -> torch.Tensor:
        steps = [
            ((part.amax(axis, keepdim=True) - part.amin(axis, keepdim=True)) / (2**bits - 1)).clamp(min=2.0**-19).expand_as(part)
            for part in x.split(group, axis)
        ]
        half = torch.cat(steps, axis) / 2
        return torch.maximum(half, 15 * 2 * UNIT_ROUNDOFF[dtype] * 2 * half)

    return most


CASES = (
    Case("clipped", narrow_sizes(2, 32)),
    Case("clipped:bits=3,group=8+zstd:fields=codes,level=3"),
    Case("kivi4", sizes(4, 32), bound(4, 32)),
    Case("kivi2", sizes(2, 32), bound(2, 32)),
    Case("kivi:bits=3", sizes(3, 32), bound(3, 32)),
    Case("kivi:bits=2,group=8+zstd:fields=codes,level=3", None, bound(2, 8)),
)
