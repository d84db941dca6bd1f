"""FP8: 8 bits, a scale per head, and a bound that is relative until E4M3's subnormals begin."""

from __future__ import annotations

import torch

from kvworker.chunk import ChunkSpec
from tests.contracts.codecs import Case


def sizes(spec: ChunkSpec) -> list[int]:
    """Return codes and scale of K, then of V."""
    heads = spec.n_layers * spec.kv_heads
    return [heads * spec.n_tokens * spec.k_dim, 4 * heads, heads * spec.n_tokens * spec.v_dim, 4 * heads]


def bound(x: torch.Tensor, axis: int, dtype: str) -> torch.Tensor:
    """Return a sixteenth of each element, but at least half a subnormal step; the scale is at most a 224th of the head's largest value,
    and not below 2**-101."""
    scale = (x.abs().amax((-2, -1), keepdim=True) / 224).clamp(min=2.0**-101)
    return torch.maximum(x.abs() / 16, scale * 2.0**-10)


CASES = (Case("fp8", sizes, bound),)
