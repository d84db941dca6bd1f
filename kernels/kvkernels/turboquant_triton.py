"""Triton kernels of `turboquant`: one program encodes or decodes one block of channels of ROWS tokens, rotation included."""

# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def,no-untyped-call"
# ruff: noqa: N803
from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvkernels import hadamard, turboquant
from kvkernels.hadamard import blocks_of
from kvkernels.hadamard_triton import load_packed, rotate, shape_of, store_packed
from kvkernels.rounding_triton import nearest, saturated

LIMIT = tl.constexpr(hadamard.LIMIT)


@triton.jit
def encode_kernel(
    x_ptr, codes_ptr, norm_ptr, signs_ptr, middles_ptr, n_rows, row_values, row_nbytes, row_blocks,
    ROWS: tl.constexpr, N: tl.constexpr, LOG_N: tl.constexpr, SQRT_N: tl.constexpr,
    BITS: tl.constexpr, K: tl.constexpr, BYTES: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Fill codes and norm from x."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row = row < n_rows
    x = tl.load(x_ptr + row[:, None] * row_values + tl.arange(0, N)[None, :], mask=is_row[:, None], other=0.0).to(tl.float32)
    exponent = tl.max(tl.abs(x), 1).to(tl.int32, bitcast=True) & 0x7F800000
    scaled = x * (0x7F000000 - exponent).to(tl.float32, bitcast=True)[:, None]
    squares = scaled * scaled
    for n in tl.static_range(LOG_N):  # neighbour by neighbour, as the reference does
        squares = tl.sum(tl.reshape(squares, (ROWS, N // (2 << n), 2)), 2)
    length = tl.sqrt_rn(tl.reshape(squares, (ROWS,)))
    inverse = tl.where(length > 0, tl.div_rn(1.0, tl.where(length > 0, length, 1.0)), 0.0)
    unit = scaled * inverse[:, None]
    y = rotate(unit * tl.load(signs_ptr + tl.arange(0, N))[None, :], ROWS, N, LOG_N, SQRT_N) * SQRT_N
    codes = tl.zeros((ROWS, N), tl.int32)
    for n in range(2**BITS - 1):
        codes += (y > tl.load(middles_ptr + n)).to(tl.int32)
    store_packed(codes_ptr, codes, row, is_row, row_nbytes, ROWS, N, BITS, K, BYTES)
    norm = nearest(tl.minimum(length * exponent.to(tl.float32, bitcast=True), LARGEST), norm_ptr.dtype.element_ty)
    tl.store(norm_ptr + row * row_blocks, norm, mask=is_row)


@triton.jit
def decode_kernel(
    codes_ptr, norm_ptr, out_ptr, signs_ptr, levels_ptr, n_rows, row_values, row_nbytes, row_blocks,
    ROWS: tl.constexpr, N: tl.constexpr, LOG_N: tl.constexpr, SQRT_N: tl.constexpr,
    BITS: tl.constexpr, K: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Fill out from codes and norm."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row = row < n_rows
    levels = tl.load(levels_ptr + load_packed(codes_ptr, row, is_row, row_nbytes, N, BITS, K, BYTES))
    y = rotate(levels, ROWS, N, LOG_N, SQRT_N) * tl.load(signs_ptr + tl.arange(0, N))[None, :]
    length = tl.div_rn(tl.load(norm_ptr + row * row_blocks, mask=is_row, other=0.0).to(tl.float32), SQRT_N)
    x = y * length[:, None]
    x = saturated(tl.where(x > LIMIT, LIMIT, tl.where(x < -LIMIT, -LIMIT, x)), out_ptr.dtype.element_ty)
    tl.store(out_ptr + row[:, None] * row_values + tl.arange(0, N)[None, :], x, mask=is_row[:, None])


def encode(x: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes and norm as `turboquant.encode` does."""
    x = x.contiguous()
    codes, norm = turboquant.new_parts(x, bits)
    dim = x.shape[-1]
    n_rows, (blocks, nbytes) = x.numel() // dim, blocks_of(dim, bits)
    signs, middles = turboquant.signs_of(dim).to(x.device), torch.tensor(turboquant.middles_of(bits), device=x.device)
    for n, block in enumerate(blocks if n_rows else ()):
        tokens, *constants = shape_of(block, bits)
        begun = (x.view(-1)[block.start :], codes.view(-1)[block.at :], norm.view(-1)[n:], signs[block.start :], middles)
        with torch.cuda.device_of(x):
            grid, largest = (triton.cdiv(n_rows, tokens),), min(torch.finfo(x.dtype).max, hadamard.LIMIT)
            encode_kernel[grid](*begun, n_rows, dim, nbytes, len(blocks), tokens, *constants, largest)
    return codes, norm


def decode(codes: torch.Tensor, norm: torch.Tensor, dim: int, bits: int, dtype: torch.dtype) -> torch.Tensor:
    """Return x' as `turboquant.decode` does."""
    codes, norm = codes.contiguous(), norm.contiguous()
    out = torch.empty((*codes.shape[:-1], dim), dtype=dtype, device=codes.device)
    n_rows, (blocks, nbytes) = out.numel() // dim, blocks_of(dim, bits)
    signs, levels = turboquant.signs_of(dim).to(codes.device), torch.tensor(turboquant.LEVELS[bits], device=codes.device)
    for n, block in enumerate(blocks if n_rows else ()):
        tokens, *constants = shape_of(block, bits)
        begun = (codes.view(-1)[block.at :], norm.view(-1)[n:], out.view(-1)[block.start :], signs[block.start :], levels)
        with torch.cuda.device_of(out):
            decode_kernel[(triton.cdiv(n_rows, tokens),)](*begun, n_rows, dim, nbytes, len(blocks), tokens, *constants)
    return out
