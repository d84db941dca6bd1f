"""Rotate stored keys to their target positions and write them to their rows of a cache.

Half-split rotary embedding: channel i is paired with channel i + R/2, for a rotary dimension R <= D. In float32:

    out[i]       = key[i] * cos[i]             - key[i + R/2] * sin[i]               0 <= i < R/2
    out[i + R/2] = key[i + R/2] * cos[i + R/2] + key[i]       * sin[i + R/2]
    out[j]       = key[j]                                                            R <= j < D

cast to the cache's dtype. The tables are (T, R): row t holds cosine and sine for the target position of token t. Compute the
angles in float64: float32 angles are off by 1e-2 at position 128k.
"""

from __future__ import annotations

import torch

from kvkernels import backend
from kvkernels.checks import require, require_device, require_value_dtype, require_values


def write(keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rows: torch.Tensor, cache: torch.Tensor) -> None:
    """Write keys (H, T, D), rotated by float32 cos and sin (T, R), to cache[:, rows] of cache (H, N, D), in place.

    rows is int64 (T,), each in 0..N-1 and no two alike; other rows of the cache keep their content. keys and cache may be views with any
    strides and must not overlap. A row out of range raises IndexError on CPU and fails the stream with a device-side assertion on
    CUDA, as torch indexing does; neither writes outside the cache.
    """
    _check(keys, cos, sin, rows, cache)
    if not backend.runs_triton(keys):
        return reference_write(keys, cos, sin, rows, cache)
    from kvkernels import rotate_scatter_triton

    return rotate_scatter_triton.write(keys, cos, sin, rows, cache)


def reference_write(keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rows: torch.Tensor, cache: torch.Tensor) -> None:
    """Rotate and write with torch on any device; see `write`."""
    half = cos.shape[-1] // 2
    n_heads = max(1, backend.SLAB // max(1, keys.shape[1] * keys.shape[2]))
    for key, cached in zip(torch.split(keys, n_heads), torch.split(cache, n_heads), strict=True):
        low, high = key[..., :half].float(), key[..., half : 2 * half].float()
        rotated = torch.empty(key.shape, dtype=cache.dtype, device=cache.device)
        rotated[..., :half] = (low * cos[:, :half]).addcmul_(high, sin[:, :half], value=-1)
        rotated[..., half : 2 * half] = (high * cos[:, half:]).addcmul_(low, sin[:, half:])
        rotated[..., 2 * half :] = key[..., 2 * half :]
        cached.index_copy_(1, rows, rotated)


def _check(keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rows: torch.Tensor, cache: torch.Tensor) -> None:
    """Raise unless the tensors fit together and lie on one device."""
    require_values("keys", keys)
    require_value_dtype("cache", cache.dtype)
    if keys.ndim != 3 or cache.ndim != 3 or (keys.shape[0], keys.shape[2]) != (cache.shape[0], cache.shape[2]):
        raise ValueError(f"keys {tuple(keys.shape)} and cache {tuple(cache.shape)} are not (H, T, D) and (H, N, D)")
    rotary_dim = cos.shape[-1] if cos.ndim else 0
    if rotary_dim % 2 or not 0 < rotary_dim <= keys.shape[2]:
        raise ValueError(f"cos: rotary dimension {rotary_dim} is not even and within 2..{keys.shape[2]}, the head dimension of keys")
    require("cos", cos, (keys.shape[1], rotary_dim), torch.float32)
    require("sin", sin, cos.shape, torch.float32)
    require("rows", rows, (keys.shape[1],), torch.int64)
    for name, tensor in (("cos", cos), ("sin", sin), ("rows", rows), ("cache", cache)):
        require_device(name, tensor, keys)
