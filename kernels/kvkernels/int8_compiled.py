"""Compiled forms of `int8` for the CPU; see `compiled`."""

from __future__ import annotations

import torch

from kvkernels.checks import require_value_dtype
from kvkernels.compiled import Form, call_form, compile_form, has_form, preparing
from kvkernels.int8 import EPS, LEVELS, Parts


def encode_form(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return codes (N, D) and scale (N, 1) of x (N, D)."""
    values = x.float()
    scale = values.abs().amax(-1, keepdim=True).clamp(min=EPS) / LEVELS
    return (values / scale).round().to(torch.int8), scale


def _decode_form(dtype: torch.dtype) -> Form:
    """Return the form that decodes K and V to a dtype."""

    def decode_form(k_codes: torch.Tensor, k_scale: torch.Tensor, v_codes: torch.Tensor, v_scale: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (k_codes.float() * k_scale).to(dtype), (v_codes.float() * v_scale).to(dtype)

    return decode_form


def prepare(k_dim: int, v_dim: int, dtype: torch.dtype) -> None:
    """Compile for heads of so many channels of K and of V, which takes seconds; needs a C++ compiler."""
    require_value_dtype("dtype", dtype)
    with preparing() as made:
        parts = {dim: compile_form(made, "int8_encode", encode_form, torch.ones(64, dim, dtype=dtype)) for dim in sorted({k_dim, v_dim})}
        sides = (part.clone() for dim in (k_dim, v_dim) for part in parts[dim])  # one tensor twice would be compiled as one
        compile_form(made, _decoder(dtype), _decode_form(dtype), *sides)


def encodes(x: torch.Tensor) -> bool:
    """Tell whether `encode` takes x."""
    return x.is_contiguous() and has_form("int8_encode", x.view(-1, x.shape[-1]))


def encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes and scale as `int8.encode` does."""
    codes, scale = call_form("int8_encode", x.view(-1, x.shape[-1]))
    return codes.view(x.shape), scale.view(*x.shape[:-1], 1)


def decodes(k: Parts, v: Parts, dtype: torch.dtype) -> bool:
    """Tell whether `decode` takes these."""
    return all(part.is_contiguous() for part in (*k, *v)) and has_form(_decoder(dtype), *_rows(k), *_rows(v))


def decode(k: Parts, v: Parts, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return K and V as `int8.decode_both` does."""
    k_rows, v_rows = call_form(_decoder(dtype), *_rows(k), *_rows(v))
    return k_rows.view(k[0].shape), v_rows.view(v[0].shape)


def _rows(parts: Parts) -> Parts:
    """View codes (N, D) and scale (N, 1)."""
    codes, scale = parts
    return codes.view(-1, codes.shape[-1]), scale.view(-1, 1)


def _decoder(dtype: torch.dtype) -> str:
    return f"int8_decode_{dtype}"
