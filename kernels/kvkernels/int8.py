"""Int8 codes with one float32 scale per token and head.

    scale = max(max|x|, 1e-8) / 127        over the D channels of one token, float32, correctly rounded
    code  = round(x / scale)               half to even; -127..127
    x'    = code * scale                   float32, then rounded to the dtype asked for

An element is off by at most max|x| / 254 (plus float32 rounding) before the last cast. Size: 8 + 32 / D bits a value.
x must be finite and below 2**127, which is the caller's check: NaN and infinity poison the scale of their own token and nothing else,
and the topmost float32 values may round up to infinity.
"""

from __future__ import annotations

import torch

from kvkernels import backend
from kvkernels.checks import require, require_device, require_value_dtype, require_values

EPS = 1e-8
LEVELS = 127
Parts = tuple[torch.Tensor, torch.Tensor]  # codes, scale


def encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes int8 (..., T, D) and scale float32 (..., T, 1) of x (..., T, D)."""
    require_values("x", x)
    from kvkernels import int8_compiled

    if backend.runs_triton(x):
        from kvkernels import int8_triton

        return int8_triton.encode(x)
    return int8_compiled.encode(x) if int8_compiled.encodes(x) else reference_encode(x)


def decode(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return x' (..., T, D) in dtype. Raises ValueError when codes and scale do not belong together."""
    _check(codes, scale, dtype)
    if backend.runs_triton(codes):
        from kvkernels import int8_triton

        return int8_triton.decode(codes, scale, dtype)
    return reference_decode(codes, scale, dtype)


def decode_both(k: Parts, v: Parts, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return K and V of a chunk as `decode` does; its compiled form takes both: a call costs tens of microseconds, and wakes threads."""
    from kvkernels import int8_compiled

    if not int8_compiled.decodes(k, v, dtype):
        return decode(*k, dtype), decode(*v, dtype)
    for parts in (k, v):
        _check(*parts, dtype)
    return int8_compiled.decode(k, v, dtype)


def _check(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> None:
    """Raise unless codes and scale are parts of one tensor that dtype can hold."""
    require_value_dtype("dtype", dtype)
    require("codes", codes, codes.shape, torch.int8)
    require("scale", scale, (*codes.shape[:-1], 1), torch.float32)
    require_device("scale", scale, codes)


def reference_encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode with torch on any device; see `encode`."""
    rows = x.reshape(-1, x.shape[-1])  # (N, D)
    codes = torch.empty(rows.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty((len(rows), 1), dtype=torch.float32, device=x.device)
    slab = max(1, backend.SLAB // x.shape[-1])
    for x_slab, code_slab, scale_slab in zip(torch.split(rows, slab), torch.split(codes, slab), torch.split(scale, slab), strict=True):
        values = x_slab.float()
        torch.amax(values.abs(), -1, keepdim=True, out=scale_slab)
        scale_slab.clamp_(min=EPS).div_(LEVELS)
        code_slab.copy_((values / scale_slab).round_())
    return codes.view(x.shape), scale.view(*x.shape[:-1], 1)


def reference_decode(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Decode with torch on any device; see `decode`."""
    rows, scales = codes.reshape(-1, codes.shape[-1]), scale.reshape(-1, 1)
    out = torch.empty(rows.shape, dtype=dtype, device=codes.device)
    slab = max(1, backend.SLAB // codes.shape[-1])
    for out_slab, code_slab, scale_slab in zip(torch.split(out, slab), torch.split(rows, slab), torch.split(scales, slab), strict=True):
        out_slab.copy_(code_slab.float().mul_(scale_slab))
    return out.view(codes.shape)
