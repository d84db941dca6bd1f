"""Triton kernels of `pca`: a program turns TOKENS tokens to or from RANK components, or CHANNELS channels, and packs as it goes.

A block of 8 components is a word of 8 bytes at most, of which the first `width` are stored; `starts` says where each block's bytes begin.
Products of matrices keep about 22 bits ("tf32x3") and divisions are not rounded correctly: a code may fall to the other side of a border
that the reference nearly meets.
"""

# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def,no-untyped-call"
# ruff: noqa: N803
from __future__ import annotations

from itertools import accumulate

import torch
import triton
import triton.language as tl

from kvkernels import pca

TOKENS, CHANNELS, RANK = 32, 32, 32
BEYOND = tl.constexpr(pca.BEYOND)
LOWEST_GAIN = tl.constexpr(pca.LOWEST_GAIN)


@triton.jit
def gain_of(gain_ptr, heads, tokens, inside, n_tokens):
    """Return the gains of heads at tokens."""
    stored = tl.load(gain_ptr + heads * n_tokens + tokens, mask=inside, other=0).to(tl.int32)
    return ((stored + LOWEST_GAIN) << 20).to(tl.float32, bitcast=True)


@triton.jit
def encode_kernel(
    x_ptr, gain_ptr, weight_ptr, mean_ptr, basis_ptr, step_ptr, width_ptr, start_ptr, codes_ptr,
    n_tokens, n_channels, rank, basis_stride, n_bytes, dim,
    HAS_GAIN: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """Fill codes (T, n_bytes) from x (H, T, D): the blocks of RANK components."""
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    components = tl.program_id(1) * RANK + tl.arange(0, RANK)
    z = tl.zeros((TOKENS, RANK), tl.float32)
    for first in range(0, n_channels, CHANNELS):
        channels = first + tl.arange(0, CHANNELS)
        inside = (tokens[:, None] < n_tokens) & (channels[None, :] < n_channels)
        at = (channels // dim)[None, :] * n_tokens * dim + tokens[:, None] * dim + (channels % dim)[None, :]
        weight = tl.load(weight_ptr + channels, mask=channels < n_channels, other=0.0)
        mean = tl.load(mean_ptr + channels, mask=channels < n_channels, other=0.0)
        y = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32) * weight[None, :]
        y = tl.minimum(tl.maximum(y, -BEYOND), BEYOND)
        if HAS_GAIN:
            y = y / gain_of(gain_ptr, (channels // dim)[None, :], tokens[:, None], inside, n_tokens)
        y = tl.where(inside, y - mean[None, :], 0.0)
        square = (channels[:, None] < n_channels) & (components[None, :] < rank)
        basis = tl.load(basis_ptr + channels[:, None] * basis_stride + components[None, :], mask=square, other=0.0)
        z = tl.dot(y, basis.to(tl.float32), acc=z, input_precision="tf32x3")
    blocks = tl.program_id(1) * (RANK // 8) + tl.arange(0, RANK // 8)
    is_block = blocks * 8 < rank
    step = tl.load(step_ptr + components, mask=components < rank, other=1.0)
    width = tl.load(width_ptr + blocks, mask=is_block, other=1)  # (RANK / 8,)
    half = (1 << (width - 1)).to(tl.float32)[None, :, None]
    steps = tl.reshape(tl.floor(z / step[None, :]), (TOKENS, RANK // 8, 8))
    codes = tl.minimum(tl.maximum(steps + half, 0.0), 2 * half - 1).to(tl.int64)
    words = tl.sum(codes << (width[:, None] * tl.arange(0, 8)[None, :]).to(tl.int64)[None, :, :], 2)  # (TOKENS, RANK / 8)
    start = tl.load(start_ptr + blocks, mask=is_block, other=0)
    byte = tl.arange(0, 8)[None, None, :]
    places = tokens[:, None, None] * n_bytes + start[None, :, None] + byte
    stored = (tokens < n_tokens)[:, None, None] & (is_block[:, None] & (tl.arange(0, 8)[None, :] < width[:, None]))[None, :, :]
    tl.store(codes_ptr + places, (words[:, :, None] >> (8 * byte).to(tl.int64) & 255).to(tl.uint8), mask=stored)


@triton.jit
def decode_kernel(
    codes_ptr, gain_ptr, weight_ptr, mean_ptr, basis_ptr, step_ptr, width_ptr, start_ptr, out_ptr,
    n_tokens, n_channels, rank, basis_stride, codes_stride, dim,
    LARGEST: tl.constexpr, HAS_GAIN: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """Fill CHANNELS channels of out (H, T, D) from codes."""
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    y = tl.zeros((TOKENS, CHANNELS), tl.float32)
    for first in range(0, rank, RANK):
        components = first + tl.arange(0, RANK)
        blocks = first // 8 + tl.arange(0, RANK // 8)
        is_block = blocks * 8 < rank
        width = tl.load(width_ptr + blocks, mask=is_block, other=1)
        start = tl.load(start_ptr + blocks, mask=is_block, other=0)
        byte = tl.arange(0, 8)[None, None, :]
        places = tokens[:, None, None] * codes_stride + start[None, :, None] + byte
        stored = (tokens < n_tokens)[:, None, None] & (is_block[:, None] & (tl.arange(0, 8)[None, :] < width[:, None]))[None, :, :]
        words = tl.sum(tl.load(codes_ptr + places, mask=stored, other=0).to(tl.int64) << (8 * byte).to(tl.int64), 2)
        shift = (width[:, None] * tl.arange(0, 8)[None, :]).to(tl.int64)[None, :, :]
        most = ((1 << width) - 1).to(tl.int64)[None, :, None]
        middle = 0.5 - (1 << (width - 1)).to(tl.float32)[None, :, None]
        codes = tl.reshape(((words[:, :, None] >> shift) & most).to(tl.float32) + middle, (TOKENS, RANK))
        step = tl.load(step_ptr + components, mask=components < rank, other=0.0)
        square = (channels[None, :] < n_channels) & (components[:, None] < rank)
        basis = tl.load(basis_ptr + channels[None, :] * basis_stride + components[:, None], mask=square, other=0.0)
        y = tl.dot(codes * step[None, :], basis.to(tl.float32), acc=y, input_precision="tf32x3")
    inside = (tokens[:, None] < n_tokens) & (channels[None, :] < n_channels)
    y += tl.load(mean_ptr + channels, mask=channels < n_channels, other=0.0)[None, :]
    if HAS_GAIN:
        y *= gain_of(gain_ptr, (channels // dim)[None, :], tokens[:, None], inside, n_tokens)
    weight = tl.load(weight_ptr + channels, mask=channels < n_channels, other=1.0)
    x = tl.minimum(tl.maximum(y / weight[None, :], -LARGEST), LARGEST)
    at = (channels // dim)[None, :] * n_tokens * dim + tokens[:, None] * dim + (channels % dim)[None, :]
    tl.store(out_ptr + at, x.to(out_ptr.dtype.element_ty), mask=inside)


def encode(x: torch.Tensor, axes: pca.Axes, gain: torch.Tensor | None) -> torch.Tensor:
    """Return codes as `pca.encode` does."""
    x = x.contiguous()
    kv_heads, n_tokens, dim = x.shape
    codes = torch.empty(n_tokens, axes.nbytes, dtype=torch.uint8, device=x.device)
    basis = _rows(axes.basis)
    if codes.numel():
        grid = (triton.cdiv(n_tokens, TOKENS), triton.cdiv(len(axes.step), RANK))
        sizes = (n_tokens, kv_heads * dim, len(axes.step), basis.stride(0), axes.nbytes, dim)
        with torch.cuda.device_of(x):
            encode_kernel[grid](x, *_tables(axes, basis, gain), codes, *sizes, gain is not None, TOKENS, CHANNELS, RANK)
    return codes


def decode(codes: torch.Tensor, axes: pca.Axes, gain: torch.Tensor | None, kv_heads: int, dtype: torch.dtype) -> torch.Tensor:
    """Return x' as `pca.decode` does."""
    n_tokens, n_channels = len(codes), len(axes.weight)
    out = torch.empty(kv_heads, n_tokens, n_channels // kv_heads, dtype=dtype, device=codes.device)
    codes, basis = _rows(codes), _rows(axes.basis)
    if out.numel():
        grid = (triton.cdiv(n_tokens, TOKENS), triton.cdiv(n_channels, CHANNELS))
        sizes = (n_tokens, n_channels, len(axes.step), basis.stride(0), codes.stride(0), out.shape[2])
        largest = torch.finfo(dtype).max
        with torch.cuda.device_of(codes):
            decode_kernel[grid](codes, *_tables(axes, basis, gain), out, *sizes, largest, gain is not None, TOKENS, CHANNELS, RANK)
    return out


def _rows(x: torch.Tensor) -> torch.Tensor:
    """Return x (N, M) with the values of a row next to each other; rows may lie apart."""
    return x if x.stride(1) == 1 else x.contiguous()


def _tables(axes: pca.Axes, basis: torch.Tensor, gain: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """Return gain (any tensor where there is none), weight, mean, basis, step, widths and the first bytes of blocks."""
    starts = list(accumulate(axes.widths, initial=0))[:-1]
    widths, firsts = torch.tensor([axes.widths, starts], dtype=torch.int32, device=basis.device)
    return axes.weight if gain is None else gain.contiguous(), axes.weight, axes.mean, basis, axes.step, widths, firsts
