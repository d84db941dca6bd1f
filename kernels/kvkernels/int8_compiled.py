"""Compiled forms of `int8` for the CPU; see `compiled`."""

from __future__ import annotations

import torch

from kvkernels.checks import require_value_dtype
from kvkernels.compiled import Form, call_form, compile_form, has_form, preparing
from kvkernels.int8 import EPS, LEVELS


def encode_form(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return codes (N, D) and scale (N, 1) of x (N, D)."""
    values = x.float()
    scale = values.abs().amax(-1, keepdim=True).clamp(min=EPS) / LEVELS
    return (values / scale).round().to(torch.int8), scale


def _decode_form(dtype: torch.dtype) -> Form:
    """Return the form that decodes to a dtype."""

    def decode_form(codes: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return ((codes.float() * scale).to(dtype),)

    return decode_form


def prepare(head_dim: int, dtype: torch.dtype) -> None:
    """Compile for heads of this many channels, which takes seconds; needs a C++ compiler."""
    require_value_dtype("dtype", dtype)
    with preparing() as made:
        codes, scale = compile_form(made, "int8_encode", encode_form, torch.ones(64, head_dim, dtype=dtype))
        compile_form(made, _decoder(dtype), _decode_form(dtype), codes, scale)


def encodes(x: torch.Tensor) -> bool:
    """Tell whether `encode` takes x."""
    return x.is_contiguous() and has_form("int8_encode", x.view(-1, x.shape[-1]))


def encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes and scale as `int8.encode` does."""
    codes, scale = call_form("int8_encode", x.view(-1, x.shape[-1]))
    return codes.view(x.shape), scale.view(*x.shape[:-1], 1)


def decodes(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> bool:
    """Tell whether `decode` takes these."""
    return codes.is_contiguous() and scale.is_contiguous() and has_form(_decoder(dtype), codes.view(-1, codes.shape[-1]), scale.view(-1, 1))


def decode(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return x' as `int8.decode` does."""
    (x,) = call_form(_decoder(dtype), codes.view(-1, codes.shape[-1]), scale.view(-1, 1))
    return x.view(codes.shape)


def _decoder(dtype: torch.dtype) -> str:
    return f"int8_decode_{dtype}"
