"""Int8: its bound, alone and packed."""

from __future__ import annotations

import torch

from kvworker.chunk import ChunkSpec
from tests.contracts.codecs import Case


def sizes(spec: ChunkSpec) -> list[int]:
    """Return codes and scale of K, then of V."""
    n = spec.n_layers * spec.kv_heads * spec.n_tokens
    return [n * spec.k_dim, 4 * n, n * spec.v_dim, 4 * n]


def bound(x: torch.Tensor, axis: int, dtype: str) -> torch.Tensor:
    """Return max|x| / 254 over each token's vector."""
    return x.abs().amax(-1, keepdim=True) / 254


CASES = (Case("int8", sizes, bound), Case("int8+zstd", None, bound))
