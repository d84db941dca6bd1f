"""Triton kernels of `skvq`: one program encodes or decodes one token of one layer, all channels of all heads.

Channels lie in a tile (WORDS, SLOTS): words of K codes, SLOTS being K rounded up to a power of two, since 5 ternary codes make a word.
A group's channels lie anywhere, so its ends are found in a pass over the tile per group, from registers.
"""

# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def,no-untyped-call"
# ruff: noqa: N803
from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvkernels import skvq
from kvkernels.fp8_triton import from_e4m3, to_e4m3
from kvkernels.packing import WORDS
from kvkernels.rounding_triton import nearest, round_half_even

BEYOND = tl.constexpr(skvq.BEYOND)


@triton.jit
def tile(n_tokens, n_channels, dim, n_words, LEVELS: tl.constexpr, K: tl.constexpr, SLOTS: tl.constexpr, WORDS: tl.constexpr):
    """Return layer and token of this program, its words (WORDS, 1), channels (WORDS, SLOTS) and which exist, and the slots' weights."""
    layer, token = (tl.program_id(0) // n_tokens).to(tl.int64), tl.program_id(0) % n_tokens
    word, slot = tl.arange(0, WORDS)[:, None], tl.arange(0, SLOTS)[None, :]
    channel = word * K + slot
    inside = (slot < K) & (channel < n_channels) & (word < n_words)
    weight = tl.full((1, SLOTS), 1, tl.int32)
    for j in tl.static_range(1, K):
        weight = tl.where(slot >= j, weight * LEVELS, weight)
    return layer, token, word, channel, inside, weight


@triton.jit
def ends_of(y, group, number, n_groups):
    """Return the lowest and the highest value of each group, in the shape of `number` (1, GROUPS); 0 of groups without channels."""
    low, high = number.to(tl.float32) * 0, number.to(tl.float32) * 0
    for g in range(n_groups):
        lowest = tl.min(tl.min(tl.where(group == g, y, float("inf")), 1, keep_dims=True), 0, keep_dims=True)
        highest = tl.max(tl.max(tl.where(group == g, y, float("-inf")), 1, keep_dims=True), 0, keep_dims=True)
        low = tl.where((number == g) & (lowest <= highest), lowest, low)
        high = tl.where((number == g) & (lowest <= highest), highest, high)
    return low, high


@triton.jit
def stored_parameter(x, IS_FLOAT8: tl.constexpr):
    """Return x as it is stored, and the float32 that this stands for."""
    if IS_FLOAT8:
        bits = to_e4m3(x)
        stored, value = bits.to(tl.uint8), from_e4m3(bits)
    else:
        stored = x.to(tl.float16)
        value = stored.to(tl.float32)
    return stored, value


@triton.jit
def encode_kernel(
    x_ptr, groups_ptr, clip_ptr, unit_ptr, codes_ptr, scale_ptr, zero_ptr,
    n_tokens, n_channels, dim, n_groups, n_words, n_bytes,
    LEVELS: tl.constexpr, LARGEST: tl.constexpr, IS_FLOAT8: tl.constexpr,
    K: tl.constexpr, N: tl.constexpr, SLOTS: tl.constexpr, WORDS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Fill codes (L, T, n_bytes), scale and zero (L, T, n_groups) from x (L, H, T, D)."""
    layer, token, word, channel, inside, weight = tile(n_tokens, n_channels, dim, n_words, LEVELS, K, SLOTS, WORDS)
    at = ((layer * (n_channels // dim) + channel // dim) * n_tokens + token) * dim + channel % dim
    group = tl.load(groups_ptr + layer * n_channels + channel, mask=inside, other=-1).to(tl.int32)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    y = tl.minimum(tl.maximum(tl.div_rn(x, tl.load(unit_ptr + layer)), -BEYOND), BEYOND)

    number = tl.arange(0, GROUPS)[None, :]
    low, high = ends_of(y, group, number, n_groups)
    middle, half = (low + high) / 2, (high - low) / 2 * tl.load(clip_ptr + layer)
    stored_zero, zero = stored_parameter(tl.minimum(tl.maximum(middle - half, -LARGEST), LARGEST), IS_FLOAT8)
    stored_scale, scale = stored_parameter(tl.minimum(tl.div_rn(2 * half, LEVELS - 1.0), LARGEST), IS_FLOAT8)
    parameter = (layer * n_tokens + token) * n_groups + number
    tl.store(scale_ptr + parameter, stored_scale, mask=number < n_groups)
    tl.store(zero_ptr + parameter, stored_zero, mask=number < n_groups)

    codes = tl.zeros((WORDS, SLOTS), tl.float32)
    for g in range(n_groups):
        step = tl.sum(tl.where(number == g, scale, 0.0), 1, keep_dims=True)
        base = tl.sum(tl.where(number == g, zero, 0.0), 1, keep_dims=True)
        steps = tl.where(step > 0, tl.div_rn(y - base, tl.where(step > 0, step, 1.0)), 0.0)
        codes = tl.where(group == g, tl.minimum(tl.maximum(steps, 0.0), LEVELS - 1.0), codes)
    words = tl.sum(tl.where(inside, round_half_even(codes), 0.0).to(tl.int32) * weight, 1)[:, None]
    for n in tl.static_range(N):
        byte = word * N + n
        place = (layer * n_tokens + token) * n_bytes + byte
        tl.store(codes_ptr + place, (words >> 8 * n).to(tl.uint8), mask=(word < n_words) & (byte < n_bytes))


@triton.jit
def decode_kernel(
    codes_ptr, scale_ptr, zero_ptr, groups_ptr, unit_ptr, out_ptr,
    n_tokens, n_channels, dim, n_groups, n_words, n_bytes,
    LEVELS: tl.constexpr, IS_FLOAT8: tl.constexpr, K: tl.constexpr, N: tl.constexpr, SLOTS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Fill out (L, H, T, D) from codes, scale and zero."""
    layer, token, word, channel, inside, weight = tile(n_tokens, n_channels, dim, n_words, LEVELS, K, SLOTS, WORDS)
    words = tl.zeros((WORDS, 1), tl.int32)
    for n in tl.static_range(N):
        byte = word * N + n
        place = (layer * n_tokens + token) * n_bytes + byte
        words |= tl.load(codes_ptr + place, mask=(word < n_words) & (byte < n_bytes), other=0).to(tl.int32) << 8 * n
    code = (words // weight % LEVELS).to(tl.float32)
    group = tl.load(groups_ptr + layer * n_channels + channel, mask=inside, other=0)
    parameter = (layer * n_tokens + token) * n_groups + group
    step, base = tl.load(scale_ptr + parameter, mask=inside, other=0), tl.load(zero_ptr + parameter, mask=inside, other=0)
    if IS_FLOAT8:
        step, base = from_e4m3(step.to(tl.int32)), from_e4m3(base.to(tl.int32))
    x = (code * step.to(tl.float32) + base.to(tl.float32)) * tl.load(unit_ptr + layer)
    at = ((layer * (n_channels // dim) + channel // dim) * n_tokens + token) * dim + channel % dim
    tl.store(out_ptr + at, nearest(x, out_ptr.dtype.element_ty), mask=inside)


def encode(
    x: torch.Tensor, groups: torch.Tensor, n_groups: int, clip: torch.Tensor, unit: torch.Tensor, levels: int, parameters: str
) -> skvq.Parts:
    """Return codes, scale and zero as `skvq.encode` does."""
    n_layers, kv_heads, n_tokens, dim = x.shape
    codes, scale, zero = skvq.new_parts(x, levels, n_groups, parameters)
    tables = (groups.contiguous(), clip.contiguous(), unit.contiguous())
    kind = (levels, torch.finfo(scale.dtype).max, scale.dtype != torch.float16)
    if codes.numel():
        with torch.cuda.device_of(x):
            encode_kernel[(n_layers * n_tokens,)](
                x.contiguous(), *tables, codes, _bits(scale), _bits(zero), n_tokens, *_sizes(kv_heads, dim, n_groups, codes, levels),
                *kind, *_words(levels, kv_heads * dim), triton.next_power_of_2(n_groups), enable_fp_fusion=False,
            )  # fmt: skip
    return codes, scale, zero


def decode(
    codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor,
    groups: torch.Tensor, unit: torch.Tensor, kv_heads: int, levels: int, dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """Return x' as `skvq.decode` does."""
    (n_layers, n_tokens, n_groups), dim = scale.shape, groups.shape[1] // kv_heads
    out = torch.empty(n_layers, kv_heads, n_tokens, dim, dtype=dtype, device=codes.device)
    stored = (codes.contiguous(), _bits(scale.contiguous()), _bits(zero.contiguous()), groups.contiguous(), unit.contiguous())
    if out.numel():
        with torch.cuda.device_of(out):
            decode_kernel[(n_layers * n_tokens,)](
                *stored, out, n_tokens, *_sizes(kv_heads, dim, n_groups, codes, levels),
                levels, scale.dtype != torch.float16, *_words(levels, kv_heads * dim), enable_fp_fusion=False,
            )  # fmt: skip
    return out


def _bits(parameter: torch.Tensor) -> torch.Tensor:
    """Return float8 as the bytes that kernels read and write."""
    return parameter if parameter.dtype == torch.float16 else parameter.view(torch.uint8)


def _sizes(kv_heads: int, dim: int, n_groups: int, codes: torch.Tensor, levels: int) -> tuple[int, ...]:
    """Return channels, channels of a head, groups, and words and bytes of a token."""
    n_channels = kv_heads * dim
    return n_channels, dim, n_groups, triton.cdiv(n_channels, WORDS[levels][0]), codes.shape[-1]


def _words(levels: int, n_channels: int) -> tuple[int, ...]:
    """Return codes and bytes of a word, and the sides of the tile."""
    per_word, word_nbytes = WORDS[levels]
    return per_word, word_nbytes, triton.next_power_of_2(per_word), triton.next_power_of_2(triton.cdiv(n_channels, per_word))
