"""Triton kernels of `hadamard`: one program encodes or decodes one block of channels of ROWS tokens, rotation included."""

# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def,no-untyped-call"
# ruff: noqa: N803
from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvkernels import hadamard
from kvkernels.hadamard import Block, blocks_of
from kvkernels.packing import WORDS, packed_nbytes
from kvkernels.rounding_triton import nearest, round_half_even, saturated

TILE = 2048
LIMIT = tl.constexpr(hadamard.LIMIT)


@triton.jit
def rotate(x, ROWS: tl.constexpr, N: tl.constexpr, LOG_N: tl.constexpr, SQRT_N: tl.constexpr):
    """Return H x / sqrt(N) of float32 x (ROWS, N): sums of neighbours, then differences, LOG_N times over."""
    x = x * (1.0 / N)
    for _ in tl.static_range(LOG_N):
        even, odd = tl.split(tl.reshape(x, (ROWS, N // 2, 2)))
        x = tl.reshape(tl.permute(tl.join(even + odd, even - odd), (0, 2, 1)), (ROWS, N))
    x = x * SQRT_N
    return tl.where(x > LIMIT, LIMIT, tl.where(x < -LIMIT, -LIMIT, x))


@triton.jit
def store_packed(
    codes_ptr, codes, row, is_row, row_nbytes, ROWS: tl.constexpr, N: tl.constexpr, BITS: tl.constexpr, K: tl.constexpr, BYTES: tl.constexpr
):  # fmt: skip
    """Write int32 codes (ROWS, N), K of them in BYTES bytes."""
    shift = BITS * tl.arange(0, K)
    words = tl.sum(tl.reshape(codes, (ROWS, N // K, K)) << shift[None, None, :], 2)
    at = codes_ptr + row[:, None] * row_nbytes + BYTES * tl.arange(0, N // K)[None, :]
    for n in tl.static_range(BYTES):
        tl.store(at + n, (words >> 8 * n).to(tl.uint8), mask=is_row[:, None])


@triton.jit
def load_packed(codes_ptr, row, is_row, row_nbytes, N: tl.constexpr, BITS: tl.constexpr, K: tl.constexpr, BYTES: tl.constexpr):
    """Return int32 codes (ROWS, N)."""
    channel = tl.arange(0, N)
    at = codes_ptr + row[:, None] * row_nbytes + (BYTES * (channel // K))[None, :]
    words = tl.load(at, mask=is_row[:, None], other=0).to(tl.int32)
    for n in tl.static_range(1, BYTES):
        words |= tl.load(at + n, mask=is_row[:, None], other=0).to(tl.int32) << 8 * n
    return (words >> (BITS * (channel % K))[None, :]) & (2**BITS - 1)


@triton.jit
def encode_kernel(
    x_ptr, codes_ptr, scale_ptr, zero_ptr, n_rows, row_values, row_nbytes, row_blocks,
    ROWS: tl.constexpr, N: tl.constexpr, LOG_N: tl.constexpr, SQRT_N: tl.constexpr,
    BITS: tl.constexpr, K: tl.constexpr, BYTES: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Fill codes, scale and zero from x."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row = row < n_rows
    x = tl.load(x_ptr + row[:, None] * row_values + tl.arange(0, N)[None, :], mask=is_row[:, None], other=0.0).to(tl.float32)
    y = rotate(x, ROWS, N, LOG_N, SQRT_N)
    y = tl.where(y > LARGEST, LARGEST, tl.where(y < -LARGEST, -LARGEST, y))
    zero = nearest(tl.min(y, 1) + 0.0, zero_ptr.dtype.element_ty)
    step = tl.maximum(tl.div_rn(tl.max(y, 1) - zero.to(tl.float32), 2.0**BITS - 1), 0.0)
    scale = nearest(step, scale_ptr.dtype.element_ty)
    step = scale.to(tl.float32)[:, None]
    codes = tl.where(step > 0, tl.div_rn(y - zero.to(tl.float32)[:, None], tl.where(step > 0, step, 1.0)), 0.0)
    codes = tl.minimum(tl.maximum(codes, 0.0), 2.0**BITS - 1)
    store_packed(codes_ptr, round_half_even(codes).to(tl.int32), row, is_row, row_nbytes, ROWS, N, BITS, K, BYTES)
    tl.store(scale_ptr + row * row_blocks, scale, mask=is_row)
    tl.store(zero_ptr + row * row_blocks, zero, mask=is_row)


@triton.jit
def decode_kernel(
    out_ptr, codes_ptr, scale_ptr, zero_ptr, n_rows, row_values, row_nbytes, row_blocks,
    ROWS: tl.constexpr, N: tl.constexpr, LOG_N: tl.constexpr, SQRT_N: tl.constexpr,
    BITS: tl.constexpr, K: tl.constexpr, BYTES: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Fill out from codes, scale and zero."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row = row < n_rows
    codes = load_packed(codes_ptr, row, is_row, row_nbytes, N, BITS, K, BYTES).to(tl.float32)
    scale = tl.load(scale_ptr + row * row_blocks, mask=is_row, other=0.0).to(tl.float32)[:, None]
    zero = tl.load(zero_ptr + row * row_blocks, mask=is_row, other=0.0).to(tl.float32)[:, None]
    x = saturated(rotate(codes * scale + zero, ROWS, N, LOG_N, SQRT_N), out_ptr.dtype.element_ty)
    tl.store(out_ptr + row[:, None] * row_values + tl.arange(0, N)[None, :], x, mask=is_row[:, None])


def encode(x: torch.Tensor, bits: int) -> hadamard.Parts:
    """Return codes, scale and zero as `hadamard.encode` does."""
    x = x.contiguous()
    parts = hadamard.new_parts(x, bits)
    _launch(encode_kernel, x, parts, bits, x.dtype)
    return parts


def decode(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, dim: int, bits: int, dtype: torch.dtype) -> torch.Tensor:
    """Return x' as `hadamard.decode` does."""
    out = torch.empty((*codes.shape[:-1], dim), dtype=dtype, device=codes.device)
    _launch(decode_kernel, out, (codes.contiguous(), scale.contiguous(), zero.contiguous()), bits, scale.dtype)
    return out


def shape_of(block: Block, bits: int) -> tuple[int, int, int, float, int, int, int]:
    """Return a kernel's constants for a block: tokens per program, channels, their logarithm and root, bits, codes and bytes of a word."""
    word = min(WORDS[2**bits][0], block.size)
    tokens = max(1, TILE // block.size)
    return tokens, block.size, block.size.bit_length() - 1, block.size**0.5, bits, word, packed_nbytes(word, 2**bits)


def _launch(kernel: object, x: torch.Tensor, parts: hadamard.Parts, bits: int, dtype: torch.dtype) -> None:
    """Run a kernel over every block of all tokens of x, on its device."""
    dim, (codes, scale, zero) = x.shape[-1], (part.view(-1) for part in parts)
    n_rows, (blocks, nbytes) = x.numel() // dim, blocks_of(dim, bits)
    for n, block in enumerate(blocks if n_rows else ()):
        tokens, *constants = shape_of(block, bits)
        begun = (x.view(-1)[block.start :], codes[block.at :], scale[n:], zero[n:])
        largest = min(torch.finfo(dtype).max, hadamard.LIMIT)
        with torch.cuda.device_of(x):
            grid = (triton.cdiv(n_rows, tokens),)
            kernel[grid](*begun, n_rows, dim, nbytes, len(blocks), tokens, *constants, largest)  # type: ignore[index]
