"""Leave channels of K out that no query looks at: ThinK (ICLR 2025, arXiv 2407.21018).

Channels j and j + D / 2 of a head make a pair, which RoPE may turn; with an odd D the last channel has no partner and is always kept. What
leaving a pair out costs attention is about

    score = sum over its two channels of E[q**2] * E[(k - mean)**2]

since the channel's mean comes back in its place. The pairs of least score are left out, of every head as many.

Where a chunk has a choice of its own it is stored as a bit per pair, pair j in bit j % 8 of byte j / 8: no bits name a channel twice.
"""

from __future__ import annotations

import torch


def n_kept(dim: int, percent: int) -> int:
    """Return the channels that are left of `dim` where `percent` of the pairs are dropped, rounded down."""
    return dim - 2 * (dim // 2 * percent // 100)


def mask_nbytes(dim: int) -> int:
    """Return the bytes of a bit per pair of channels."""
    return -(-(dim // 2) // 8)


def choose(q_square: torch.Tensor, k_variance: torch.Tensor, percent: int) -> torch.Tensor:
    """Return the channels to keep (..., kept) int64, ascending, by query energy and variance of K (..., D) each."""
    dim = q_square.shape[-1]
    half, kept = dim // 2, n_kept(dim, percent)
    scores = (q_square * k_variance)[..., : 2 * half].reshape(*q_square.shape[:-1], 2, half).sum(-2)
    return _channels(scores.argsort(dim=-1, descending=True, stable=True)[..., : kept // 2], dim)


def to_mask(kept: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the bits (..., bytes) uint8 of the channels that are kept."""
    bits = torch.zeros(*kept.shape[:-1], 8 * mask_nbytes(dim), dtype=torch.uint8, device=kept.device)
    bits.scatter_(-1, kept[..., : kept.shape[-1] // 2], 1)  # the lower channel of each pair comes first
    shifted = bits.view(*kept.shape[:-1], -1, 8) << _places(kept.device)
    return shifted.sum(-1, dtype=torch.uint8)


def from_mask(mask: torch.Tensor, dim: int, percent: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the channels kept and those left out, ascending, of bits that others wrote.

    Raises ValueError where a head keeps more or fewer pairs than `percent` says, or a bit stands for no pair.
    """
    half, n_pairs = dim // 2, n_kept(dim, percent) // 2
    bits = ((mask[..., None] >> _places(mask.device)) & 1).flatten(-2).bool()
    is_kept = bits[..., :half]
    counts = is_kept.sum(-1)
    if bool((counts != n_pairs).any()) or bool(bits[..., half:].any()):
        raise ValueError(f"a mask keeps {n_pairs} of {half} pairs in each head; this one keeps {int(counts.min())} to {int(counts.max())}")
    kept, others = (pairs.nonzero()[:, -1].view(*mask.shape[:-1], -1) for pairs in (is_kept, ~is_kept))
    return _channels(kept, dim), _channels(others, 2 * half)


def _channels(pairs: torch.Tensor, dim: int) -> torch.Tensor:
    """Return both channels of pairs (..., n), and of an odd `dim` the last channel, ascending."""
    half = dim // 2
    alone = torch.arange(2 * half, dim, device=pairs.device).expand(*pairs.shape[:-1], -1)
    return torch.cat((pairs, pairs + half, alone), -1).sort(-1).values


def _places(device: torch.device) -> torch.Tensor:
    """Return the places of bits in a byte."""
    return torch.arange(8, dtype=torch.uint8, device=device)


def keep(k: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return the channels `kept` (L, H, kept) of k (L, H, T, D)."""
    return k.gather(3, kept[:, :, None].expand(-1, -1, k.shape[2], -1))


def fill(k: torch.Tensor, kept: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Return (L, H, T, D) with k (L, H, T, kept) in the channels `kept` and `mean` (L, H, D) in the others."""
    n_layers, kv_heads, n_tokens, _ = k.shape
    out = mean.to(k.dtype)[:, :, None].expand(n_layers, kv_heads, n_tokens, -1).contiguous()
    return out.scatter_(3, kept[:, :, None].expand(-1, -1, n_tokens, -1), k)
