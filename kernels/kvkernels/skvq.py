"""Codes of few levels over reordered channels: SKVQ (arXiv 2405.06219).

All channels of all heads of a layer, C = H * D, are put into an order in which neighbours have like ranges; a group is `group` consecutive
channels of one token in that order. The last group may be shorter.

    low, high = middle -+ clip * (max - min) / 2 of the group     float32; outliers beyond are cut off
    zero      = low / unit, scale = (high - low) / (levels - 1) / unit, both rounded to float8 (E4M3) or float16
    code      = round((x / unit - zero) / scale) within 0 and levels - 1; 0 where scale is 0
    x'        = (code * scale + zero) * unit                      float32, then rounded to the dtype asked for

`unit` is a power of two per layer that brings the values of calibration to about 1 to 256, where both types are accurate; a parameter
beyond the type's largest value becomes that value. The paper scales both ends of the range by `clip`; here the range shrinks about its
middle, which is the same for groups around zero and right for groups that are not.

Codes are packed along channels as `packing` says: codes (L, T, packed(C)), scale and zero (L, T, ceil(C / group)).
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from kvkernels.checks import require, require_value_dtype, require_values
from kvkernels.packing import pack, packed_nbytes, unpack

Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # codes, scale, zero
LEVELS = (3, 4, 8, 16)
PARAMETERS = {"float8": torch.float8_e4m3fn, "float16": torch.float16}
_TOKENS_AT_ONCE = 128
_BEYOND = 2.0**100  # far outside both types, and sums and differences of two are finite


def stored_shapes(n_layers: int, n_tokens: int, n_channels: int, levels: int, group: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape of codes, and that of scale and of zero."""
    rows = (n_layers, n_tokens)
    return (*rows, packed_nbytes(n_channels, levels)), (*rows, -(-n_channels // group))


def encode(x: torch.Tensor, order: torch.Tensor, clip: torch.Tensor, unit: torch.Tensor, levels: int, group: int, parameters: str) -> Parts:
    """Return codes uint8, scale and zero of x (L, H, T, D).

    `order` (L, C) int64 holds the channel h * D + d that stands at each place; `clip` and `unit` (L,) are float32. Scale and zero have
    the type that PARAMETERS names.
    """
    require_values("x", x)
    n_layers, kv_heads, n_tokens, dim = x.shape
    require("order", order, (n_layers, kv_heads * dim), torch.int64)
    codes_shape, parameter_shape = stored_shapes(n_layers, n_tokens, kv_heads * dim, levels, group)
    dtype = PARAMETERS[parameters]
    codes = torch.empty(codes_shape, dtype=torch.uint8, device=x.device)
    scale, zero = (torch.empty(parameter_shape, dtype=dtype, device=x.device) for _ in range(2))
    for layer in range(n_layers):
        for start in range(0, n_tokens, _TOKENS_AT_ONCE):
            rows = slice(start, start + _TOKENS_AT_ONCE)
            flat = x[layer, :, rows].transpose(0, 1).reshape(-1, kv_heads * dim)
            y = (flat[:, order[layer]].float() / unit[layer]).clamp_(-_BEYOND, _BEYOND)
            codes[layer, rows], scale[layer, rows], zero[layer, rows] = _encode_rows(y, clip[layer], levels, group, dtype)
    return codes, scale, zero


def decode(
    codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, order: torch.Tensor, unit: torch.Tensor, kv_heads: int, levels: int,
    group: int, dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """Return x' (L, H, T, D) in dtype. Raises ValueError when the parts are not those of such a tensor."""
    require_value_dtype("dtype", dtype)
    (n_layers, n_tokens, _), n_channels = codes.shape, order.shape[1]
    codes_shape, parameter_shape = stored_shapes(n_layers, n_tokens, n_channels, levels, group)
    require("codes", codes, codes_shape, torch.uint8)
    require("scale", scale, parameter_shape, scale.dtype)
    require("zero", zero, parameter_shape, scale.dtype)
    out = torch.empty(n_layers, n_tokens, n_channels, dtype=dtype, device=codes.device)
    places = torch.argsort(order, 1)
    for layer in range(n_layers):
        for start in range(0, n_tokens, _TOKENS_AT_ONCE):
            rows = slice(start, start + _TOKENS_AT_ONCE)
            y = torch.unflatten(pad(unpack(codes[layer, rows], n_channels, levels).float(), (0, -n_channels % group)), 1, (-1, group))
            y = y.mul_(scale[layer, rows].float().unsqueeze(2)).add_(zero[layer, rows].float().unsqueeze(2)).mul_(unit[layer])
            out[layer, rows] = y.flatten(1)[:, places[layer]].to(dtype)
    return torch.unflatten(out, 2, (kv_heads, -1)).transpose(1, 2)


def _encode_rows(y: torch.Tensor, clip: torch.Tensor, levels: int, group: int, dtype: torch.dtype) -> Parts:
    """Return the parts of reordered, scaled values (N, C)."""
    n_channels = y.shape[1]
    grouped = torch.unflatten(pad(y[None], (0, -n_channels % group), mode="replicate")[0], 1, (-1, group))  # (N, G, group)
    low, high = grouped.amin(2), grouped.amax(2)
    middle, half = (low + high) / 2, (high - low) / 2 * clip
    limit = torch.finfo(dtype).max
    zero = (middle - half).clamp(-limit, limit).to(dtype)
    scale = (2 * half / (levels - 1)).clamp(max=limit).to(dtype)
    step = scale.float().unsqueeze(2)
    steps = torch.where(step > 0, (grouped - zero.float().unsqueeze(2)) / step, 0)
    codes = steps.round_().clamp_(0, levels - 1).to(torch.uint8)
    return pack(codes.flatten(1)[:, :n_channels], levels), scale, zero
