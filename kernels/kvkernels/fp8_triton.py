"""Triton kernels of `fp8`: one program handles BLOCK values of one head. E4M3 is made of integers, which runs where no GPU unit does it."""

# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def,no-untyped-call"
# ruff: noqa: N803
from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvkernels import fp8
from kvkernels.rounding_triton import round_half_even, saturated

BLOCK = 4096


@triton.jit
def to_e4m3(x):
    """Round float32 |x| <= 448 to E4M3, half to even; return its bits in int32."""
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
    small = round_half_even(tl.abs(x) * 512.0).to(tl.int32)  # below 2**-6 the step is 2**-9
    return tl.where(magnitude < 0x3C800000, small, normal) | ((bits >> 24) & 0x80)


@triton.jit
def from_e4m3(code):
    """Return float32 of E4M3 bits in int32."""
    exponent, fraction = (code >> 3) & 15, code & 7
    normal = (((exponent + 120) << 23) | (fraction << 20)).to(tl.float32, bitcast=True)
    magnitude = tl.where(exponent == 0, fraction.to(tl.float32) * 0.001953125, normal)
    magnitude = tl.where((code & 0x7F) == 0x7F, float("nan"), magnitude)
    return tl.where(code >= 0x80, -magnitude, magnitude)


@triton.jit
def place(n_values, BLOCK: tl.constexpr):
    """Return this program's head, the offsets of its values and which of them exist."""
    n_blocks = tl.cdiv(n_values, BLOCK)
    head = (tl.program_id(0) // n_blocks).to(tl.int64)
    at = (tl.program_id(0) % n_blocks) * BLOCK + tl.arange(0, BLOCK)
    return head, head * n_values + at, at < n_values


@triton.jit
def largest_kernel(x_ptr, largest_ptr, n_values, BLOCK: tl.constexpr):
    """Raise each head's largest magnitude, float32 read as int32: magnitudes and their bits have one order."""
    head, at, inside = place(n_values, BLOCK)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.atomic_max(largest_ptr + head, tl.max(tl.abs(x), 0).to(tl.int32, bitcast=True))


@triton.jit
def encode_kernel(x_ptr, inverse_ptr, codes_ptr, n_values, BLOCK: tl.constexpr):
    """Fill codes from x and the reciprocals of the scales."""
    head, at, inside = place(n_values, BLOCK)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(codes_ptr + at, to_e4m3(x * tl.load(inverse_ptr + head)).to(tl.uint8), mask=inside)


@triton.jit
def decode_kernel(codes_ptr, scale_ptr, out_ptr, n_values, BLOCK: tl.constexpr):
    """Fill out from codes and scales."""
    head, at, inside = place(n_values, BLOCK)
    x = from_e4m3(tl.load(codes_ptr + at, mask=inside, other=0).to(tl.int32))
    tl.store(out_ptr + at, saturated(x * tl.load(scale_ptr + head), out_ptr.dtype.element_ty), mask=inside)


def encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes and scale as `fp8.encode` does."""
    x = x.contiguous()
    codes = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    largest = torch.zeros(x.shape[:-2], dtype=torch.int32, device=x.device)
    _launch(largest_kernel, x, largest)
    scale = fp8.scale_of(largest.view(torch.float32))
    _launch(encode_kernel, x, scale.reciprocal(), codes)
    return codes, scale


def decode(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return x' as `fp8.decode` does."""
    codes, scale = codes.contiguous(), scale.contiguous()
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    _launch(decode_kernel, codes, scale, out)
    return out


def _launch(kernel: object, *tensors: torch.Tensor) -> None:
    """Run a kernel over the values of its first tensor (..., T, D), head by head, on that tensor's device."""
    n_values = tensors[0].shape[-2] * tensors[0].shape[-1]
    if tensors[0].numel() == 0:
        return
    with torch.cuda.device_of(tensors[0]):
        grid = (tensors[0].numel() // n_values * triton.cdiv(n_values, BLOCK),)
        kernel[grid](*tensors, n_values, BLOCK)  # type: ignore[index]
