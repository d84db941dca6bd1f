"""A synthetic layer with the traits of real KV: smooth text, keys with a few large channels, values whose norms vary."""

from __future__ import annotations

from dataclasses import dataclass

import torch

RANK, HEADS, DIM, TOKENS = 96, 4, 128, 2048
_MODEL_SEED = 12345


@dataclass(frozen=True)
class Synthetic:
    """K before RoPE and V (1, H, T, D), and queries (H, 64, D) against keys before RoPE."""

    k: torch.Tensor
    v: torch.Tensor
    q: torch.Tensor


def layer(text_seed: int, n_tokens: int = TOKENS) -> Synthetic:
    """Return a layer of one fixed model over a text: a latent walk of rank 96 seen through fixed maps."""
    model, text = torch.Generator().manual_seed(_MODEL_SEED), torch.Generator().manual_seed(text_seed)
    fade = 0.93 ** torch.arange(RANK) / 5**0.5
    to_k, to_v = (torch.randn(RANK, HEADS, DIM, generator=model) * fade[:, None, None] for _ in range(2))
    mean, scale = 0.2 * torch.randn(HEADS, DIM, generator=model), torch.ones(HEADS, DIM)
    for head in range(HEADS):
        large = 44 + torch.randperm(20, generator=model)[:4]
        mean[head, large] = 10.0 * (1 - 2 * torch.randint(0, 2, (4,), generator=model))
        scale[head, large] = 3.0
    walk = [torch.randn(RANK, generator=text)]
    for _ in range(n_tokens - 1):
        walk.append(0.9 * walk[-1] + (1 - 0.81) ** 0.5 * torch.randn(RANK, generator=text))
    u = torch.stack(walk)
    w, norms = torch.randn(n_tokens, RANK, generator=text), torch.randn(n_tokens, generator=text)
    k = mean + torch.einsum("tr,rhd->thd", u, to_k) * scale + 0.25 * torch.randn(n_tokens, HEADS, DIM, generator=text)
    v = torch.einsum("tr,rhd->thd", 0.5 * u + 0.87 * w, to_v) + 0.5 * torch.randn(n_tokens, HEADS, DIM, generator=text)
    v = v * torch.exp(0.6 * norms)[:, None, None]
    v[:4] *= 0.05
    asked = u[torch.randint(0, n_tokens, (64,), generator=text)]
    q = 2.2 * torch.einsum("tr,rhd->htd", asked, to_k) + 0.6 * torch.randn(HEADS, 64, DIM, generator=text)
    q = torch.where((scale > 1)[:, None], 0.3 * q, q)
    return Synthetic(k.transpose(0, 1)[None].contiguous(), v.transpose(0, 1)[None].contiguous(), q)


def relative_error(back: torch.Tensor, x: torch.Tensor) -> float:
    """Return the norm of what is off over the norm of what should be."""
    return float((back.float() - x.float()).norm() / x.float().norm())
