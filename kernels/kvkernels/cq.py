"""Codes of runs of channels: CQ, coupled quantization (NeurIPS 2024, arXiv 2405.03917).

The D channels of a head are cut into G = ceil(D / c) runs of c neighbours; the last one is filled up with zeros. Each run of each head of
each layer has a codebook of 2**bits vectors. A run x is stored as the number of a nearest vector y, the first of those that are:

    code = argmax of sum(x * y) - sum(y * y) / 2      float32, x within -2**40 and 2**40
    x'   = the vector, less what filled it up         float16, then rounded to the dtype asked for

Codes are packed along the runs of a head as `packing` says: (L, H, T, packed(G)). They take bits / c bits a value and nothing beside them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvkernels import backend
from kvkernels.checks import require, require_device, require_value_dtype, require_values
from kvkernels.packing import pack, packed_nbytes, unpack

REACH = 2.0**40
"""Magnitude at which values are cut off: products with float16 vectors stay finite."""
_TOKENS_AT_ONCE = 32


def stored_shape(shape: Sequence[int], couple: int, bits: int) -> tuple[int, int, int, int]:
    """Return the shape of the codes of x (L, H, T, D)."""
    n_layers, kv_heads, n_tokens, dim = shape
    return n_layers, kv_heads, n_tokens, packed_nbytes(-(-dim // couple), 2**bits)


def encode(x: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """Return codes uint8 (L, H, T, B) of x (L, H, T, D) under codebooks float16 (L, H, G, 2**bits, c), on one device."""
    require_values("x", x)
    couple = codebooks.shape[-1]
    require("codebooks", codebooks, (*x.shape[:2], -(-x.shape[3] // couple), *codebooks.shape[3:]), torch.float16)
    require_device("codebooks", codebooks, x)
    if backend.runs_triton(x):
        from kvkernels import cq_triton

        nearest = cq_triton.nearest(x, codebooks)
    else:
        nearest = reference_nearest(x, codebooks)
    return pack(nearest, codebooks.shape[3])


def decode(codes: torch.Tensor, codebooks: torch.Tensor, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """Return x' (L, H, T, D) in dtype. Raises ValueError when the codes are not those of such a tensor; any bytes are some codes."""
    require_value_dtype("dtype", dtype)
    n_layers, kv_heads, n_runs, n_vectors, couple = codebooks.shape
    require("codebooks", codebooks, (n_layers, kv_heads, -(-dim // couple), n_vectors, couple), torch.float16)
    require("codes", codes, (n_layers, kv_heads, codes.shape[2], packed_nbytes(n_runs, n_vectors)), torch.uint8)
    require_device("codebooks", codebooks, codes)
    nearest = unpack(codes, n_runs, n_vectors)
    if not backend.runs_triton(codes):
        return reference_gather(nearest, codebooks, dim, dtype)
    from kvkernels import cq_triton

    return cq_triton.gather(nearest, codebooks, dim, dtype)


def runs_of(x: torch.Tensor, couple: int) -> torch.Tensor:
    """Return x (..., T, D) as runs (..., G, T, c)."""
    filled = torch.nn.functional.pad(x, (0, -x.shape[-1] % couple))
    return torch.unflatten(filled, -1, (-1, couple)).transpose(-3, -2)


def reference_nearest(x: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """Return the number int64 (L, H, T, G) of the nearest vector of every run, with torch on any device."""
    n_tokens, vectors = x.shape[2], codebooks.float()
    half = vectors.square().sum(-1)[:, :, :, None] / 2  # (L, H, G, 1, K)
    found = torch.empty((*x.shape[:3], codebooks.shape[2]), dtype=torch.int64, device=x.device)
    for layer in range(len(x)):
        for start in range(0, n_tokens, _TOKENS_AT_ONCE):
            rows = x[layer, :, start : start + _TOKENS_AT_ONCE].float().clamp_(-REACH, REACH)
            n_rows = rows.shape[1]  # filled up to one size, so that a token's sums do not depend on the tokens behind it
            runs = runs_of(torch.nn.functional.pad(rows, (0, 0, 0, _TOKENS_AT_ONCE - n_rows)), codebooks.shape[-1])
            best = (runs @ vectors[layer].mT - half[layer]).argmax(-1)  # (H, G, tokens)
            found[layer, :, start : start + n_rows] = best[:, :, :n_rows].transpose(1, 2)
    return found


def reference_gather(nearest: torch.Tensor, codebooks: torch.Tensor, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the vectors of these numbers (L, H, T, G) as x' (L, H, T, D) in dtype, with torch on any device."""
    n_layers, kv_heads, n_runs, n_vectors, couple = codebooks.shape
    first = torch.arange(n_runs, device=nearest.device) * n_vectors
    out = torch.empty((*nearest.shape[:3], dim), dtype=dtype, device=nearest.device)
    for layer in range(n_layers):
        for head in range(kv_heads):
            at = (nearest[layer, head].to(torch.int64) + first).flatten()
            out[layer, head] = codebooks[layer, head].reshape(-1, couple)[at].view(-1, n_runs * couple)[:, :dim].to(dtype)
    return out
