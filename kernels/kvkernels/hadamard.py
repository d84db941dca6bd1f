"""Codes of few levels in a rotated basis, where no channel is large: QuaRot's cache (arXiv 2404.00456), and the rotation itself.

The D channels of a head are cut into blocks of powers of two, the largest first (80 = 64 + 16), and each block is coded apart:

    y     = H x / sqrt(N)                         H the N x N Hadamard matrix in natural order; the map is its own inverse
    zero  = min of the block's y                  rounded to the dtype of x
    scale = (max - zero) / (2**bits - 1)          rounded to the dtype of x
    code  = round((y - zero) / scale)             within 0 and 2**bits - 1; 0 where scale is 0
    x'    = H (code * scale + zero) / sqrt(N)     float32, then rounded to the dtype asked for, in float16 to at most 65504

Sums are taken in the order of the fast transform, first over neighbours: ((x0 + x1) + (x2 + x3)) + ..., each rounded in float32, with x
divided by N before and multiplied by sqrt(N) behind, so that nothing overflows on the way; y is cut off at 2**127 and at the largest value
of the dtype of x. A block of N codes is packed as `packing` says, and blocks follow each other: codes (..., T, bytes), scale and zero
(..., T, B).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from kvkernels import backend
from kvkernels.checks import require, require_device, require_value_dtype, require_values
from kvkernels.packing import pack, packed_nbytes, unpack
from kvkernels.saturate import saturated

Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # codes, scale, zero
BITS = (2, 3, 4)
LIMIT = 2.0**127


@dataclass(frozen=True)
class Block:
    """Channels `start` to `start + size - 1` of a head, whose packed codes start at byte `at`."""

    start: int
    size: int
    at: int


def blocks_of(dim: int, bits: int) -> tuple[tuple[Block, ...], int]:
    """Return the blocks of D channels, the largest first, and the bytes that their codes take."""
    found, start, at = [], 0, 0
    while start < dim:
        size = 1 << (dim - start).bit_length() - 1
        found.append(Block(start, size, at))
        start, at = start + size, at + packed_nbytes(size, 2**bits)
    return tuple(found), at


def rotate(x: torch.Tensor) -> torch.Tensor:
    """Return H x / sqrt(N) along the last axis of float32 x, whose length N is a power of two; its own inverse."""
    size = x.shape[-1]
    y = x / size
    for _ in range(size.bit_length() - 1):
        even, odd = y[..., ::2], y[..., 1::2]
        y = torch.cat((even + odd, even - odd), -1)
    return y.mul_(size**0.5).clamp_(-LIMIT, LIMIT)


def encode(x: torch.Tensor, bits: int) -> Parts:
    """Return codes uint8, scale and zero of x (..., T, D) with 2, 3 or 4 bits a value."""
    require_values("x", x)
    _check_bits(bits)
    if not backend.runs_triton(x):
        return reference_encode(x, bits)
    from kvkernels import hadamard_triton

    return hadamard_triton.encode(x, bits)


def decode(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, dim: int, bits: int, dtype: torch.dtype) -> torch.Tensor:
    """Return x' (..., T, dim) in dtype. Raises ValueError when the parts are not those of such a tensor."""
    require_value_dtype("dtype", dtype)
    require_value_dtype("scale", scale.dtype)
    _check_bits(bits)
    codes_shape, parameter_shape = stored_shapes((*codes.shape[:-1], dim), bits)
    require("codes", codes, codes_shape, torch.uint8)
    require("scale", scale, parameter_shape, scale.dtype)
    require("zero", zero, parameter_shape, scale.dtype)
    require_device("scale", scale, codes)
    require_device("zero", zero, codes)
    if not backend.runs_triton(codes):
        return reference_decode(codes, scale, zero, dim, bits, dtype)
    from kvkernels import hadamard_triton

    return hadamard_triton.decode(codes, scale, zero, dim, bits, dtype)


def stored_shapes(shape: tuple[int, ...], bits: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape of codes, and that of scale and of zero, for x of this shape (..., T, D)."""
    blocks, nbytes = blocks_of(shape[-1], bits)
    return (*shape[:-1], nbytes), (*shape[:-1], len(blocks))


def new_parts(x: torch.Tensor, bits: int) -> Parts:
    """Allocate what encoding x fills."""
    codes_shape, parameter_shape = stored_shapes(tuple(x.shape), bits)
    scale = torch.empty(parameter_shape, dtype=x.dtype, device=x.device)
    return torch.empty(codes_shape, dtype=torch.uint8, device=x.device), scale, torch.empty_like(scale)


def reference_encode(x: torch.Tensor, bits: int) -> Parts:
    """Encode with torch on any device; see `encode`."""
    parts = new_parts(x, bits)
    blocks, _ = blocks_of(x.shape[-1], bits)
    for values, codes, scale, zero in slabs(x, *parts):
        for n, block in enumerate(blocks):
            y = rotate(values[:, block.start : block.start + block.size].float())
            own, scale[:, n], zero[:, n] = _encode_rows(y, bits, x.dtype)
            codes[:, block.at : block.at + own.shape[1]] = own
    return parts


def reference_decode(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, dim: int, bits: int, dtype: torch.dtype) -> torch.Tensor:
    """Decode with torch on any device; see `decode`."""
    out = torch.empty((*codes.shape[:-1], dim), dtype=dtype, device=codes.device)
    blocks, _ = blocks_of(dim, bits)
    for values, packed, steps, lows in slabs(out, codes, scale, zero):
        for n, block in enumerate(blocks):
            own = packed[:, block.at : block.at + packed_nbytes(block.size, 2**bits)]
            y = unpack(own, block.size, 2**bits).float().mul_(steps[:, n : n + 1].float()).add_(lows[:, n : n + 1].float())
            values[:, block.start : block.start + block.size] = saturated(rotate(y), dtype)
    return out


def slabs(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Cut tensors (..., T, any) into slabs of tokens, views (N, any) where strides allow it; the first one decides how many."""
    rows = max(1, backend.SLAB // max(1, tensors[0].shape[-1]))
    flat = [x.reshape(x.numel() // max(1, x.shape[-1]), x.shape[-1]) for x in tensors]
    return zip(*(torch.split(x, rows) for x in flat), strict=True) if len(flat[0]) else iter(())


def _encode_rows(y: torch.Tensor, bits: int, dtype: torch.dtype) -> Parts:
    """Return packed codes, scale and zero of rotated rows (N, block)."""
    levels, limit = 2**bits - 1, min(torch.finfo(dtype).max, LIMIT)
    y = y.clamp_(-limit, limit)
    zero = (y.amin(1) + 0.0).to(dtype)  # -0 + 0 is +0
    scale = (y.amax(1).sub_(zero.float()) / levels).clamp_(min=0).to(dtype)
    step = scale.float()[:, None]
    steps = torch.where(step > 0, (y - zero.float()[:, None]) / step, 0)
    return pack(steps.round_().clamp_(0, levels).to(torch.uint8), 2**bits), scale, zero


def _check_bits(bits: int) -> None:
    """Raise unless there is such a codec."""
    if bits not in BITS:
        raise ValueError(f"hadamard: bits {bits}; choose one of {BITS}")
