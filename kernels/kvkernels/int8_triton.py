"""Triton kernels of `int8`: one program encodes or decodes ROWS tokens."""

# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def,no-untyped-call"
# ruff: noqa: N803
from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvkernels import int8
from kvkernels.rounding_triton import round_half_even

ROWS = 32
EPS = tl.constexpr(int8.EPS)
LEVELS = tl.constexpr(float(int8.LEVELS))


@triton.jit
def encode_kernel(x_ptr, codes_ptr, scale_ptr, n_rows, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr):
    """Fill codes and scale from x (n_rows, D)."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channels = tl.arange(0, BLOCK_D)
    at = rows[:, None] * D + channels[None, :]
    inside = (rows[:, None] < n_rows) & (channels[None, :] < D)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)  # (ROWS, BLOCK_D)
    scale = tl.div_rn(tl.maximum(tl.max(tl.abs(x), 1), EPS), LEVELS)
    codes = round_half_even(tl.div_rn(x, scale[:, None]))
    tl.store(codes_ptr + at, codes.to(tl.int8), mask=inside)
    tl.store(scale_ptr + rows, scale, mask=rows < n_rows)


@triton.jit
def decode_kernel(codes_ptr, scale_ptr, out_ptr, n_rows, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr):
    """Fill out (n_rows, D) from codes and scale."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channels = tl.arange(0, BLOCK_D)
    at = rows[:, None] * D + channels[None, :]
    inside = (rows[:, None] < n_rows) & (channels[None, :] < D)
    scale = tl.load(scale_ptr + rows, mask=rows < n_rows, other=0.0)
    codes = tl.load(codes_ptr + at, mask=inside, other=0).to(tl.float32)
    tl.store(out_ptr + at, (codes * scale[:, None]).to(out_ptr.dtype.element_ty), mask=inside)


def encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes and scale as `int8.encode` does."""
    x = x.contiguous()
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    _launch(encode_kernel, x, codes, scale)
    return codes, scale


def decode(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return x' as `int8.decode` does."""
    codes, scale = codes.contiguous(), scale.contiguous()
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    _launch(decode_kernel, codes, scale, out)
    return out


def _launch(kernel: object, *tensors: torch.Tensor) -> None:
    """Run a kernel over the tokens of its first tensor, on that tensor's device."""
    n_channels = tensors[0].shape[-1]
    n_rows = tensors[0].numel() // max(1, n_channels)
    if n_rows == 0:
        return
    with torch.cuda.device_of(tensors[0]):
        kernel[(triton.cdiv(n_rows, ROWS),)](*tensors, n_rows, n_channels, triton.next_power_of_2(n_channels), ROWS)  # type: ignore[index]
