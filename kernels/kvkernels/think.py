"""Leave channels of K out that no query looks at: ThinK (ICLR 2025, arXiv 2407.21018).

Channels j and j + D / 2 of a head make a pair, which RoPE may turn; with an odd D the last channel has no partner and is always kept. What
leaving a pair out costs attention is about

    score = sum over its two channels of E[q**2] * E[(k - mean)**2]

since the channel's mean comes back in its place. The pairs of least score are left out, of every head as many.
"""

from __future__ import annotations

import torch


def n_kept(dim: int, percent: int) -> int:
    """Return the channels that are left of `dim` where `percent` of the pairs are dropped, rounded down."""
    return dim - 2 * (dim // 2 * percent // 100)


def choose(q_square: torch.Tensor, k_variance: torch.Tensor, percent: int) -> torch.Tensor:
    """Return the channels to keep (H, kept) int64, ascending, by query energy and variance of K (H, D) each."""
    kv_heads, dim = q_square.shape
    half, kept = dim // 2, n_kept(dim, percent)
    scores = (q_square * k_variance)[:, : 2 * half].view(kv_heads, 2, half).sum(1)
    pairs = scores.argsort(dim=1, descending=True, stable=True)[:, : kept // 2]
    alone = torch.arange(2 * half, dim).expand(kv_heads, -1)
    return torch.cat((pairs, pairs + half, alone), 1).sort(1).values


def keep(k: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return the channels `kept` (L, H, kept) of k (L, H, T, D)."""
    return k.gather(3, kept[:, :, None].expand(-1, -1, k.shape[2], -1))


def fill(k: torch.Tensor, kept: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Return (L, H, T, D) with k (L, H, T, kept) in the channels `kept` and `mean` (L, H, D) in the others."""
    n_layers, kv_heads, n_tokens, _ = k.shape
    out = mean.to(k.dtype)[:, :, None].expand(n_layers, kv_heads, n_tokens, -1).contiguous()
    return out.scatter_(3, kept[:, :, None].expand(-1, -1, n_tokens, -1), k)
