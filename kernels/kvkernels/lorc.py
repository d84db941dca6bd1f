"""Keep what a layer's K and V have along few axes: LoRC (arXiv 2410.03111).

K before RoPE is x @ W, with W = U S V^T. Along the axes V_r of the r largest singular values K has x U_r S_r = K V_r: the axes alone turn
what a model has computed into latents, and no weight changes. Axes of the activations' covariance take the place of V_r likewise.

    z  = (y - mean) @ basis         float32, cut to +-2**100, then rounded to the model's dtype; y are the C = H * D channels of a token
    y' = z @ basis.T + mean         float32, cut to the dtype's largest value

Layers whose errors go through more of the model keep more axes. A layer counts by the condition number of its W_k times that of its W_v,
and by the product of those of all layers behind it: ranks go from `most` for the largest product to `least` for the smallest, along its
logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from kvkernels.checks import require, require_values
from kvkernels.tiles import product

_LIMIT = 2.0**100
_LEAST_RATIO = 1e-12  # of eigenvalues: what is below is rounding, and would make any matrix singular


def axes(gram: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return the axes (C, C) of a Gram matrix as columns, the largest first, and the logarithm of its condition number's root."""
    values, vectors = torch.linalg.eigh(gram.double())
    largest = float(values[-1].clamp(min=1e-300))
    return vectors.flip(1).float(), 0.5 * math.log(largest / max(float(values[0]), _LEAST_RATIO * largest))


def ranks(log_conditions: Sequence[float], most: int, least: int) -> list[int]:
    """Return how many axes each layer keeps, falling with depth, by the logarithms of the layers' condition numbers."""
    products = [sum(log_conditions[layer:]) for layer in range(len(log_conditions))]
    span = products[0] - products[-1]
    return [round(least + (most - least) * (p - products[-1]) / span) if span > 0 else most for p in products]


def project(x: torch.Tensor, mean: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Return latents (L, 1, T, R) in x's dtype of x (L, H, T, D), with mean (L, C) and basis (L, C, R)."""
    require_values("x", x)
    n_layers, kv_heads, n_tokens, dim = x.shape
    require("mean", mean, (n_layers, kv_heads * dim), torch.float32)
    require("basis", basis, (n_layers, kv_heads * dim, basis.shape[-1]), torch.float32)
    limit = min(_LIMIT, torch.finfo(x.dtype).max)
    z = x.new_empty(n_layers, 1, n_tokens, basis.shape[-1])
    for layer, (own_mean, own_basis) in enumerate(zip(mean, basis, strict=True)):
        y = x[layer].transpose(0, 1).flatten(1).float().clamp(-_LIMIT, _LIMIT)
        z[layer, 0] = product(y - own_mean, own_basis).clamp_(-limit, limit).to(x.dtype)
    return z


def rebuild(z: torch.Tensor, mean: torch.Tensor, basis: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Return x' (L, H, T, D) in the dtype of latents z (L, 1, T, R)."""
    require_values("z", z)
    n_layers, _, n_tokens, rank = z.shape
    require("basis", basis, (n_layers, mean.shape[-1], rank), torch.float32)
    limit = torch.finfo(z.dtype).max
    out = z.new_empty(n_layers, n_tokens, mean.shape[-1])
    for layer, (own_mean, own_basis) in enumerate(zip(mean, basis, strict=True)):
        y = product(z[layer, 0].float().clamp(-_LIMIT, _LIMIT), own_basis.T) + own_mean
        out[layer] = y.clamp_(-limit, limit).to(z.dtype)
    return torch.unflatten(out, 2, (kv_heads, -1)).transpose(1, 2)
