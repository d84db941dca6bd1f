"""Triton kernels of `pca`: a program turns TOKENS tokens to RANK components, or to CHANNELS channels, and packs or unpacks as it goes.

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
from kvkernels.place_triton import Turn, within
from kvkernels.rounding_triton import saturated

TOKENS, CHANNELS, RANK = 32, 32, 32
MOST_CHANNELS = 128
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
def turned_back(
    codes_ptr, gain_ptr, weight_ptr, mean_ptr, basis_ptr, step_ptr, width_ptr, start_ptr, tokens, channels, is_token, is_channel,
    n_tokens, rank, basis_stride, codes_stride, dim,
    LARGEST: tl.constexpr, HAS_GAIN: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """Return float32 values (TOKENS, CHANNELS) within -LARGEST and LARGEST, of tokens and channels that exist, from codes."""
    y = tl.zeros((TOKENS, CHANNELS), tl.float32)
    for first in range(0, rank, RANK):
        components = first + tl.arange(0, RANK)
        blocks = first // 8 + tl.arange(0, RANK // 8)
        is_block = blocks * 8 < rank
        width = tl.load(width_ptr + blocks, mask=is_block, other=1)
        start = tl.load(start_ptr + blocks, mask=is_block, other=0)
        byte = tl.arange(0, 8)[None, None, :]
        places = tokens[:, None, None] * codes_stride + start[None, :, None] + byte
        stored = is_token[:, None, None] & (is_block[:, None] & (tl.arange(0, 8)[None, :] < width[:, None]))[None, :, :]
        words = tl.sum(tl.load(codes_ptr + places, mask=stored, other=0).to(tl.int64) << (8 * byte).to(tl.int64), 2)
        shift = (width[:, None] * tl.arange(0, 8)[None, :]).to(tl.int64)[None, :, :]
        most = ((1 << width) - 1).to(tl.int64)[None, :, None]
        middle = 0.5 - (1 << (width - 1)).to(tl.float32)[None, :, None]
        codes = tl.reshape(((words[:, :, None] >> shift) & most).to(tl.float32) + middle, (TOKENS, RANK))
        step = tl.load(step_ptr + components, mask=components < rank, other=0.0)
        square = is_channel[None, :] & (components[:, None] < rank)
        basis = tl.load(basis_ptr + channels[None, :] * basis_stride + components[:, None], mask=square, other=0.0)
        y = tl.dot(codes * step[None, :], basis.to(tl.float32), acc=y, input_precision="tf32x3")
    y += tl.load(mean_ptr + channels, mask=is_channel, other=0.0)[None, :]
    if HAS_GAIN:
        inside = is_token[:, None] & is_channel[None, :]
        y *= gain_of(gain_ptr, (channels // dim)[None, :], tokens[:, None], inside, n_tokens)
    weight = tl.load(weight_ptr + channels, mask=is_channel, other=1.0)
    return tl.minimum(tl.maximum(y / weight[None, :], -LARGEST), LARGEST)


@triton.jit
def decode_kernel(
    codes_ptr, gain_ptr, weight_ptr, mean_ptr, basis_ptr, step_ptr, width_ptr, start_ptr, out_ptr,
    n_tokens, n_channels, rank, basis_stride, codes_stride, dim,
    LARGEST: tl.constexpr, HAS_GAIN: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """Fill CHANNELS channels of out (H, T, D) from codes."""
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_token, is_channel = tokens < n_tokens, channels < n_channels
    x = turned_back(
        codes_ptr, gain_ptr, weight_ptr, mean_ptr, basis_ptr, step_ptr, width_ptr, start_ptr, tokens, channels, is_token, is_channel,
        n_tokens, rank, basis_stride, codes_stride, dim, LARGEST, HAS_GAIN, TOKENS, CHANNELS, RANK,
    )  # fmt: skip
    at = (channels // dim)[None, :] * n_tokens * dim + tokens[:, None] * dim + (channels % dim)[None, :]
    tl.store(out_ptr + at, x.to(out_ptr.dtype.element_ty), mask=is_token[:, None] & is_channel[None, :])


@triton.jit
def write_kernel(
    codes_ptr, gain_ptr, weight_ptr, mean_ptr, basis_ptr, step_ptr, width_ptr, start_ptr, cos_ptr, sin_ptr, rows_ptr, cache_ptr,
    n_tokens, n_rows, rank, basis_stride, codes_stride, dim, first_channel, cache_h, cache_n, cache_d,
    R: tl.constexpr, LARGEST: tl.constexpr, HAS_GAIN: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """Fill rows of one head of a cache: the channels that turn, pairs beside each other, or those from `first_channel` on if R is 0."""
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    head = tl.program_id(2).to(tl.int64)
    row = tl.load(rows_ptr + tokens, mask=tokens < n_tokens, other=-1)
    is_written = (row >= 0) & (row < n_rows)
    column = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    if R > 0:
        own, is_channel = column // 2 + column % 2 * (R // 2), column < R
    else:
        own, is_channel = first_channel + column, first_channel + column < dim
    x = turned_back(
        codes_ptr, gain_ptr, weight_ptr, mean_ptr, basis_ptr, step_ptr, width_ptr, start_ptr, tokens, head * dim + own, is_written,
        is_channel, n_tokens, rank, basis_stride, codes_stride, dim, LARGEST, HAS_GAIN, TOKENS, CHANNELS, RANK,
    )  # fmt: skip
    target = cache_ptr + head * cache_h + row[:, None] * cache_n
    dtype = cache_ptr.dtype.element_ty
    if R > 0:
        low, high = tl.split(tl.reshape(x, (TOKENS, CHANNELS // 2, 2)))
        i = tl.program_id(1) * (CHANNELS // 2) + tl.arange(0, CHANNELS // 2)[None, :]
        inside = is_written[:, None] & (i < R // 2)
        table = tokens[:, None] * R + i
        out_low = low * tl.load(cos_ptr + table, mask=inside) - high * tl.load(sin_ptr + table, mask=inside)
        table += R // 2
        out_high = high * tl.load(cos_ptr + table, mask=inside) + low * tl.load(sin_ptr + table, mask=inside)
        tl.store(target + i * cache_d, saturated(out_low, dtype), mask=inside)
        tl.store(target + (i + R // 2) * cache_d, saturated(out_high, dtype), mask=inside)
    else:
        tl.store(target + own[None, :] * cache_d, saturated(x, dtype), mask=is_written[:, None] & is_channel[None, :])


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


def write(
    codes: torch.Tensor, axes: pca.Axes, gain: torch.Tensor | None, turn: Turn, rows: torch.Tensor, cache: torch.Tensor
) -> None:  # fmt: skip
    """Write as `place.write_pca` does: a launch for the channels that turn, and one for those that do not."""
    (n_heads, n_rows, dim), n_tokens = cache.shape, len(rows)
    if cache.numel() == 0 or n_tokens == 0:
        return
    codes, basis = _rows(codes), _rows(axes.basis)
    cos, sin = (table.contiguous() for table in turn) if turn is not None else (axes.weight, axes.weight)
    rotary_dim = cos.shape[-1] if turn is not None else 0
    largest, tables = torch.finfo(cache.dtype).max, _tables(axes, basis, gain)
    with torch.cuda.device_of(cache):
        rows = within(rows, n_rows)
        for turning, first, n_own in ((rotary_dim, 0, rotary_dim), (0, rotary_dim, dim - rotary_dim)):
            if n_own:
                width = min(MOST_CHANNELS, max(CHANNELS, triton.next_power_of_2(n_own)))
                write_kernel[(triton.cdiv(n_tokens, TOKENS), triton.cdiv(n_own, width), n_heads)](
                    codes, *tables, cos, sin, rows, cache, n_tokens, n_rows, len(axes.step), basis.stride(0), codes.stride(0), dim, first,
                    *cache.stride(), turning, largest, gain is not None, TOKENS, width, RANK,
                )  # fmt: skip


def _rows(x: torch.Tensor) -> torch.Tensor:
    """Return x (N, M) with the values of a row next to each other; rows may lie apart."""
    return x if x.stride(1) == 1 else x.contiguous()


def _tables(axes: pca.Axes, basis: torch.Tensor, gain: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """Return gain (any tensor where there is none), weight, mean, basis, step, widths and the first bytes of blocks."""
    starts = list(accumulate(axes.widths, initial=0))[:-1]
    widths, firsts = torch.tensor([axes.widths, starts], dtype=torch.int32, device=basis.device)
    return axes.weight if gain is None else gain.contiguous(), axes.weight, axes.mean, basis, axes.step, widths, firsts
