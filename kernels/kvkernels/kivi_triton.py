"""Triton kernels of `kivi`: one program encodes or decodes one group of each of BLOCK lines.

A line is a run along the grouped axis; `kivi.lines` puts either axis into the form (M, A, W), where line l starts at value
(l // W) * A * W + l % W and goes on in steps of W. A tile is (GROUP / K, K, BLOCK): words of N bytes, codes in a word, lines.
"""

# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def,no-untyped-call"
# ruff: noqa: N803
from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from kvkernels import kivi
from kvkernels.packing import WORDS
from kvkernels.rounding_triton import round_half_even, round_toward_zero

TILE = 4096
SCALE_FLOOR = tl.constexpr(kivi.SCALE_FLOOR)


@triton.jit
def locate(length, n_lines, W: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    """Return offsets and masks of this program's values (P, K, BLOCK), its words (P, 1) and lines, and its group parameters (BLOCK)."""
    P: tl.constexpr = GROUP // K  # noqa: N806
    n_groups = tl.cdiv(length, GROUP)
    group = tl.program_id(0) % n_groups
    line = (tl.program_id(0) // n_groups).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    outer, inner = line // W, line % W
    word = group * P + tl.arange(0, P)[:, None]
    position = word[:, :, None] * K + tl.arange(0, K)[None, :, None]
    is_line = line < n_lines
    values = (outer * length * W + inner)[None, None, :] + position * W
    parameters = (outer * n_groups + group) * W + inner
    return values, is_line[None, None, :] & (position < length), word, outer, inner, parameters, is_line


@triton.jit
def encode_kernel(
    x_ptr, codes_ptr, scale_ptr, zero_ptr, length, n_lines, n_bytes,
    W: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Fill codes, scale and zero from x."""
    values, is_value, word, outer, inner, parameters, is_line = locate(length, n_lines, W, GROUP, K, BLOCK)
    x = tl.load(x_ptr + values, mask=is_value, other=0.0).to(tl.float32)
    low = tl.min(tl.min(tl.where(is_value, x, float("inf")), 1), 0) + 0.0
    high = tl.max(tl.max(tl.where(is_value, x, float("-inf")), 1), 0)
    step = tl.maximum(tl.div_rn(high - low, 2.0**BITS - 1), SCALE_FLOOR)
    scale = round_toward_zero(step, scale_ptr.dtype.element_ty)
    codes = round_half_even(tl.div_rn(x - low[None, None, :], scale.to(tl.float32)[None, None, :]))
    codes = tl.where(is_value, tl.minimum(codes, 2.0**BITS - 1), 0.0).to(tl.int32)
    words = tl.sum(codes << (BITS * tl.arange(0, K))[None, :, None], 1)  # (P, BLOCK)
    for n in tl.static_range(N):
        byte = word * N + n
        packed = (outer * n_bytes * W + inner)[None, :] + byte * W
        tl.store(codes_ptr + packed, (words >> 8 * n).to(tl.uint8), mask=is_line[None, :] & (byte < n_bytes))
    tl.store(scale_ptr + parameters, scale, mask=is_line)
    tl.store(zero_ptr + parameters, low.to(zero_ptr.dtype.element_ty), mask=is_line)


@triton.jit
def decode_kernel(
    codes_ptr, scale_ptr, zero_ptr, out_ptr, length, n_lines, n_bytes,
    W: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Fill out from codes, scale and zero."""
    values, is_value, word, outer, inner, parameters, is_line = locate(length, n_lines, W, GROUP, K, BLOCK)
    scale = tl.load(scale_ptr + parameters, mask=is_line, other=0.0).to(tl.float32)[None, None, :]
    zero = tl.load(zero_ptr + parameters, mask=is_line, other=0.0).to(tl.float32)[None, None, :]
    words = tl.zeros((GROUP // K, BLOCK), tl.int32)
    for n in tl.static_range(N):
        byte = word * N + n
        packed = (outer * n_bytes * W + inner)[None, :] + byte * W
        words |= tl.load(codes_ptr + packed, mask=is_line[None, :] & (byte < n_bytes), other=0).to(tl.int32) << 8 * n
    codes = (words[:, None, :] >> (BITS * tl.arange(0, K))[None, :, None]) & (2**BITS - 1)
    tl.store(out_ptr + values, (codes.to(tl.float32) * scale + zero).to(out_ptr.dtype.element_ty), mask=is_value)


def encode(x: torch.Tensor, bits: int, group: int, axis: kivi.Axis) -> kivi.Parts:
    """Return codes, scale and zero as `kivi.encode` does."""
    x = x.contiguous()
    parts = kivi.new_parts(x, bits, group, axis)
    _launch(encode_kernel, x, (x, *parts), bits, group, axis)
    return parts


def decode(
    codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor,
    shape: Sequence[int], bits: int, group: int, axis: kivi.Axis, dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """Return x' as `kivi.decode` does."""
    out = torch.empty(tuple(shape), dtype=dtype, device=codes.device)
    _launch(decode_kernel, out, (codes.contiguous(), scale.contiguous(), zero.contiguous(), out), bits, group, axis)
    return out


def _launch(kernel: object, x: torch.Tensor, tensors: tuple[torch.Tensor, ...], bits: int, group: int, axis: kivi.Axis) -> None:
    """Run a kernel over the groups of x, on its device."""
    n_outer, length, width = kivi.lines(x, axis).shape
    n_lines, block, n_bytes = n_outer * width, TILE // group, triton.cdiv(length * bits, 8)
    if x.numel() == 0:
        return
    with torch.cuda.device_of(x):
        grid = (triton.cdiv(n_lines, block) * triton.cdiv(length, group),)
        kernel[grid](*tensors, length, n_lines, n_bytes, width, bits, group, *WORDS[2**bits], block)  # type: ignore[index]
