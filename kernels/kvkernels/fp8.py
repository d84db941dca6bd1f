"""Float8 codes (E4M3) with one power-of-two scale per head.

    scale = 2**ceil(log2(max(max|x|, 2**-92) / 448))   over all tokens of a head; float32
    code  = x / scale rounded to E4M3                  half to even; 448 is its largest value
    x'    = code * scale                               float32, then rounded to the dtype asked for, in float16 to at most 65504

An element is off by at most 2**-4 of itself, or 2**-10 scales below 2**-6 scales (E4M3's subnormals), before the last cast. A power of two
costs nothing of that, and what lies on an E4M3 grid already comes back bit for bit: a float8 cache whose scale is a power of two passes
through. Size: 8 bits a value and 4 B per head. x must be finite, which is the caller's check.
"""

from __future__ import annotations

import math

import torch

from kvkernels import backend
from kvkernels.checks import require, require_device, require_value_dtype, require_values
from kvkernels.saturate import saturated

LARGEST = 448.0
_LEAST = 2.0**-92  # keeps scales and their reciprocals away from subnormal numbers


def encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes (..., T, D), E4M3 as uint8, and scale (...) float32 of x (..., T, D)."""
    require_values("x", x)
    if not backend.runs_triton(x):
        return reference_encode(x)
    from kvkernels import fp8_triton

    return fp8_triton.encode(x)


def decode(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return x' (..., T, D) in dtype. Raises ValueError when codes and scale do not belong together."""
    require_value_dtype("dtype", dtype)
    require("codes", codes, codes.shape, torch.uint8)
    require("scale", scale, codes.shape[:-2], torch.float32)
    require_device("scale", scale, codes)
    if not backend.runs_triton(codes):
        return reference_decode(codes, scale, dtype)
    from kvkernels import fp8_triton

    return fp8_triton.decode(codes, scale, dtype)


def scale_of(largest: torch.Tensor) -> torch.Tensor:
    """Return the least powers of two, float32, that bring these largest magnitudes to 448 or below."""
    bits = largest.float().clamp(min=_LEAST).div(LARGEST).view(torch.int32)
    return (bits + 0x7FFFFF).bitwise_and_(0x7F800000).view(torch.float32)


def reference_encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode with torch on any device; see `encode`."""
    codes = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    largest = x.abs().amax((-2, -1)) if x.numel() else torch.zeros(x.shape[:-2], device=x.device)
    scale = scale_of(largest)
    flat, heads = _by_head(codes), _by_head(x)
    for head, factor in enumerate(scale.reciprocal().flatten().tolist()):
        for part, into in zip(torch.split(heads[head], backend.SLAB), torch.split(flat[head], backend.SLAB), strict=True):
            into.copy_((part.float() * factor).to(torch.float8_e4m3fn).view(torch.uint8))
    return codes, scale


def reference_decode(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Decode with torch on any device; see `decode`."""
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    flat, heads = _by_head(out), _by_head(codes)
    for head, factor in enumerate(scale.flatten().tolist()):
        for part, into in zip(torch.split(heads[head], backend.SLAB), torch.split(flat[head], backend.SLAB), strict=True):
            into.copy_(saturated(part.view(torch.float8_e4m3fn).float().mul_(factor), dtype))
    return out


def _by_head(x: torch.Tensor) -> torch.Tensor:
    """View (..., T, D) as one row per head; copies x if its strides demand it."""
    return x.reshape(math.prod(x.shape[:-2]), x.shape[-2] * x.shape[-1])
