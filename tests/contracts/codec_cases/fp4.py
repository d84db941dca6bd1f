"""NVFP4 and MXFP4: 4 bits and a byte per block, and what the largest value of a block may lose."""

from __future__ import annotations

import torch

from kvworker.chunk import ChunkSpec
from tests.contracts.codecs import Case, Sizes


def sizes(block: int, scale_nbytes: int) -> Sizes:
    """Return codes, steps and any scale of K, then of V."""

    def nbytes(spec: ChunkSpec) -> list[int]:
        heads, found = spec.n_layers * spec.kv_heads, []
        for dim in (spec.k_dim, spec.v_dim):
            rows = heads * spec.n_tokens
            found += [rows * -(-dim // 2), rows * -(-dim // block), *([heads * scale_nbytes] if scale_nbytes else [])]
        return found

    return nbytes


def block_largest(x: torch.Tensor, block: int) -> torch.Tensor:
    """Return the largest magnitude of each element's block."""
    parts = x.abs().split(block, -1)
    return torch.cat([part.amax(-1, keepdim=True).expand_as(part) for part in parts], -1)


def mxfp4(x: torch.Tensor, axis: int, dtype: str) -> torch.Tensor:
    """Return a quarter of the block's largest, 8 steps that become 6; half the least step of a block of next to nothing."""
    return (block_largest(x, 32) / 4).clamp(min=2.0**-127)


def nvfp4(x: torch.Tensor, axis: int, dtype: str) -> torch.Tensor:
    """Return half the widest gap, one step of a sixth of the largest, if the step grew by 1/16; 1/16 and the gap's 15/16 if it shrank.
    A step below 2**-6 scales is off by half a subnormal one, and there are 6 of them in the block's largest."""
    subnormal = (x.abs().amax((-2, -1), keepdim=True) / 6 / 224).clamp(min=2.0**-101) * 2.0**-10
    return block_largest(x, 16) * (1 + 1 / 16) / 6 + 7 * subnormal


CASES: tuple[Case, ...] = (Case("nvfp4", sizes(16, 4), nvfp4), Case("mxfp4", sizes(32, 0), mxfp4))
