"""Int8 and 4-bit KIVI as one writes them down in torch: what compiled forms are compared with."""

from __future__ import annotations

import torch

_GROUP, _TOP, _FLOOR = 32, 15, 2.0**-19


def encode_int8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes and scale of x (..., T, D)."""
    values = x.float()
    scale = values.abs().amax(-1, keepdim=True).clamp(min=1e-8) / 127
    return (values / scale).round().to(torch.int8), scale


def decode_int8(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return values in dtype."""
    return (codes.float() * scale).to(dtype)


def encode_kivi4(x: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return codes of groups along axis -2 or -1 of x (..., T, D), two in a byte, scale and zero."""
    groups = torch.unflatten(x, axis, (-1, _GROUP)).float()
    low, high = groups.amin(axis, keepdim=True), groups.amax(axis, keepdim=True)
    scale = ((high - low) / _TOP).clamp(min=_FLOOR).to(x.dtype)
    codes = ((groups - low) / scale.float()).round().clamp(0, _TOP).to(torch.uint8)
    first, second = torch.unflatten(codes, axis, (-1, 2)).unbind(axis)
    return first | second << 4, scale, low.to(x.dtype)


def decode_kivi4(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, axis: int) -> torch.Tensor:
    """Return values (..., T, D) in the dtype of scale."""
    pairs = torch.stack((codes & _TOP, codes >> 4), axis)
    end = codes.ndim + axis
    groups = pairs.flatten(end, end + 1)
    return (groups.float() * scale.float() + zero.float()).to(scale.dtype).flatten(end - 1, end)
