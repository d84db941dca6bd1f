"""Codes of few levels over groups of channels with like ranges: SKVQ (arXiv 2405.06219).

Every channel of every head of a layer, C = H * D of them in the order h * D + d, belongs to one of G groups, which need not be neighbours
nor equally many. The channels of a group share a range in each token:

    low, high = middle -+ clip * (max - min) / 2 of the group     float32; outliers beyond are cut off
    zero      = low / unit, scale = (high - low) / (levels - 1) / unit, both rounded to float8 (E4M3) or float16
    code      = round((x / unit - zero) / scale) within 0 and levels - 1; 0 where scale is 0
    x'        = (code * scale + zero) * unit                      float32, then rounded to the dtype asked for

`unit` is a power of two per layer that brings the values of calibration to at most 256, where both types are accurate; a parameter beyond
the type's largest value becomes that value, and those of a group without channels are 0. The paper scales both ends of the range by `clip`;
here the range shrinks about its middle, which is the same for groups around zero and right for groups that are not. The paper also moves
channels so that a group lies together; nothing depends on it, so here the codes keep the order of the channels.

Codes are packed along channels as `packing` says: codes (L, T, packed(C)), scale and zero (L, T, G).
"""

from __future__ import annotations

import torch

from kvkernels import backend
from kvkernels.checks import require, require_device, require_value_dtype, require_values
from kvkernels.packing import pack, packed_nbytes, unpack

Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # codes, scale, zero
LEVELS = (3, 4, 8, 16)
PARAMETERS = {"float8": torch.float8_e4m3fn, "float16": torch.float16}
_TOKENS_AT_ONCE = 128
BEYOND = 2.0**100  # far outside both types, and sums and differences of two are finite


def stored_shapes(n_layers: int, n_tokens: int, n_channels: int, levels: int, n_groups: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape of codes, and that of scale and of zero."""
    rows = (n_layers, n_tokens)
    return (*rows, packed_nbytes(n_channels, levels)), (*rows, n_groups)


def encode(
    x: torch.Tensor, groups: torch.Tensor, n_groups: int, clip: torch.Tensor, unit: torch.Tensor, levels: int, parameters: str
) -> Parts:
    """Return codes uint8, scale and zero of x (L, H, T, D).

    `groups` (L, C) int64 holds the group of each channel; `clip` and `unit` (L,) are float32. Scale and zero have the type that PARAMETERS
    names. Raises ValueError for groups that do not fit.
    """
    require_values("x", x)
    n_layers, kv_heads, _, dim = x.shape
    _check_groups(groups, (n_layers, kv_heads * dim), n_groups)
    for name, table in (("clip", clip), ("unit", unit)):
        require(name, table, (n_layers,), torch.float32)
        require_device(name, table, x)
    require_device("groups", groups, x)
    if not backend.runs_triton(x):
        return reference_encode(x, groups, n_groups, clip, unit, levels, parameters)
    from kvkernels import skvq_triton

    return skvq_triton.encode(x, groups, n_groups, clip, unit, levels, parameters)


def decode(
    codes: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    groups: torch.Tensor,
    unit: torch.Tensor,
    kv_heads: int,
    levels: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return x' (L, H, T, D) in dtype. Raises ValueError when the parts are not those of such a tensor."""
    require_value_dtype("dtype", dtype)
    (n_layers, n_tokens, n_groups), n_channels = scale.shape, groups.shape[1]
    _check_groups(groups, (n_layers, n_channels), n_groups)
    codes_shape, parameter_shape = stored_shapes(n_layers, n_tokens, n_channels, levels, n_groups)
    require("codes", codes, codes_shape, torch.uint8)
    require("zero", zero, parameter_shape, scale.dtype)
    require("unit", unit, (n_layers,), torch.float32)
    for name, part in (("scale", scale), ("zero", zero), ("groups", groups), ("unit", unit)):
        require_device(name, part, codes)
    if not backend.runs_triton(codes):
        return reference_decode(codes, scale, zero, groups, unit, kv_heads, levels, dtype)
    from kvkernels import skvq_triton

    return skvq_triton.decode(codes, scale, zero, groups, unit, kv_heads, levels, dtype)


def reference_encode(
    x: torch.Tensor, groups: torch.Tensor, n_groups: int, clip: torch.Tensor, unit: torch.Tensor, levels: int, parameters: str
) -> Parts:
    """Encode with torch on any device; see `encode`."""
    n_layers, kv_heads, n_tokens, dim = x.shape
    codes, scale, zero = new_parts(x, levels, n_groups, parameters)
    for layer in range(n_layers):
        for start in range(0, n_tokens, _TOKENS_AT_ONCE):
            rows = slice(start, start + _TOKENS_AT_ONCE)
            flat = x[layer, :, rows].transpose(0, 1).reshape(-1, kv_heads * dim)
            y = (flat.float() / unit[layer]).clamp_(-BEYOND, BEYOND)
            parts = _encode_rows(y, groups[layer], n_groups, clip[layer], levels, scale.dtype)
            codes[layer, rows], scale[layer, rows], zero[layer, rows] = parts
    return codes, scale, zero


def reference_decode(
    codes: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    groups: torch.Tensor,
    unit: torch.Tensor,
    kv_heads: int,
    levels: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Decode with torch on any device; see `decode`."""
    (n_layers, n_tokens, _), n_channels = scale.shape, groups.shape[1]
    out = torch.empty(n_layers, n_tokens, n_channels, dtype=dtype, device=codes.device)
    for layer in range(n_layers):
        for start in range(0, n_tokens, _TOKENS_AT_ONCE):
            rows = slice(start, start + _TOKENS_AT_ONCE)
            step, low = (part[layer, rows].float()[:, groups[layer]] for part in (scale, zero))  # (N, C)
            out[layer, rows] = unpack(codes[layer, rows], n_channels, levels).float().mul_(step).add_(low).mul_(unit[layer]).to(dtype)
    return torch.unflatten(out, 2, (kv_heads, -1)).transpose(1, 2)


def new_parts(x: torch.Tensor, levels: int, n_groups: int, parameters: str) -> Parts:
    """Allocate what encoding x (L, H, T, D) fills."""
    n_layers, kv_heads, n_tokens, dim = x.shape
    codes_shape, parameter_shape = stored_shapes(n_layers, n_tokens, kv_heads * dim, levels, n_groups)
    codes = torch.empty(codes_shape, dtype=torch.uint8, device=x.device)
    scale, zero = (torch.empty(parameter_shape, dtype=PARAMETERS[parameters], device=x.device) for _ in range(2))
    return codes, scale, zero


def _encode_rows(y: torch.Tensor, groups: torch.Tensor, n_groups: int, clip: torch.Tensor, levels: int, dtype: torch.dtype) -> Parts:
    """Return the parts of scaled values (N, C)."""
    of = groups.expand(len(y), -1)
    low, high = (y.new_zeros(len(y), n_groups).scatter_reduce_(1, of, y, how, include_self=False) for how in ("amin", "amax"))
    middle, half = (low + high) / 2, (high - low) / 2 * clip
    limit = torch.finfo(dtype).max
    zero = (middle - half).clamp(-limit, limit).to(dtype)
    scale = (2 * half / (levels - 1)).clamp(max=limit).to(dtype)
    step = scale.float()[:, groups]
    steps = torch.where(step > 0, (y - zero.float()[:, groups]) / step, 0)
    return pack(steps.round_().clamp_(0, levels - 1).to(torch.uint8), levels), scale, zero


def _check_groups(groups: torch.Tensor, shape: tuple[int, int], n_groups: int) -> None:
    """Raise unless every channel belongs to a group."""
    require("groups", groups, shape, torch.int64)
    if groups.numel() and not 0 <= int(groups.min()) <= int(groups.max()) < n_groups:
        raise ValueError(f"groups: must lie within 0 and {n_groups - 1}, got {int(groups.min())} to {int(groups.max())}")
