"""Refuse tensors that a kernel would misread: a GPU does not check bounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch

VALUE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def require_values(name: str, x: torch.Tensor) -> None:
    """Raise unless x is a (..., T, D) tensor of float32, float16 or bfloat16 with at least one channel."""
    require_value_dtype(name, x.dtype)
    if x.ndim < 2 or x.shape[-1] == 0:
        raise ValueError(f"{name}: shape {tuple(x.shape)} is not (..., T, D) with D >= 1")


def require_value_dtype(name: str, dtype: torch.dtype) -> None:
    """Raise unless dtype is one that keys and values come in."""
    if dtype not in VALUE_DTYPES:
        raise TypeError(f"{name}: dtype {dtype} is not supported; cast to one of {', '.join(map(str, VALUE_DTYPES))}")


def require(name: str, x: torch.Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Raise unless x has exactly this shape and dtype."""
    if tuple(x.shape) != tuple(shape) or x.dtype != dtype:
        raise ValueError(f"{name}: expected {dtype} {tuple(shape)}, got {x.dtype} {tuple(x.shape)}")


def require_device(name: str, x: torch.Tensor, beside: torch.Tensor) -> None:
    """Raise unless both tensors are on one device."""
    if x.device != beside.device:
        raise ValueError(f"{name}: on {x.device}, but the tensor it belongs to is on {beside.device}; move one of them")
