"""Triton kernel of `place`: one program decodes TOKENS tokens of one head, rotates them if they are keys, and writes them to their rows."""

# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def,no-untyped-call"
# ruff: noqa: N803
from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvkernels import kivi
from kvkernels.fp8_triton import from_e4m3
from kvkernels.rounding_triton import saturated

TOKENS = 32
INT8, FP8, KIVI_TOKEN, KIVI_CHANNEL, VALUES = (tl.constexpr(n) for n in range(5))


@triton.jit
def decode(
    codes_ptr, scale_ptr, zero_ptr, head, token, channel, inside, n_tokens,
    D: tl.constexpr, CODEC: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Return float32 values of token (TOKENS, 1) and channel (1, C) of a head, 0 where not inside."""
    if CODEC == VALUES:
        return tl.load(codes_ptr + (head * n_tokens + token) * D + channel, mask=inside, other=0.0).to(tl.float32)
    if CODEC == INT8:
        code = tl.load(codes_ptr + (head * n_tokens + token) * D + channel, mask=inside, other=0).to(tl.float32)
        return code * tl.load(scale_ptr + head * n_tokens + token, mask=token < n_tokens, other=0.0)
    if CODEC == FP8:
        code = tl.load(codes_ptr + (head * n_tokens + token) * D + channel, mask=inside, other=0).to(tl.int32)
        return from_e4m3(code) * tl.load(scale_ptr + head)
    K: tl.constexpr = 8 // BITS  # noqa: N806
    if CODEC == KIVI_TOKEN:
        byte = (head * tl.cdiv(n_tokens, K) + token // K) * D + channel
        parameter = (head * tl.cdiv(n_tokens, GROUP) + token // GROUP) * D + channel
        shift = token % K * BITS
    else:
        byte = (head * n_tokens + token) * ((D + K - 1) // K) + channel // K
        parameter = (head * n_tokens + token) * ((D + GROUP - 1) // GROUP) + channel // GROUP
        shift = channel % K * BITS
    code = (tl.load(codes_ptr + byte, mask=inside, other=0).to(tl.int32) >> shift) & (2**BITS - 1)
    scale = tl.load(scale_ptr + parameter, mask=inside, other=0.0).to(tl.float32)
    return code.to(tl.float32) * scale + tl.load(zero_ptr + parameter, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def write_kernel(
    codes_ptr, scale_ptr, zero_ptr, cos_ptr, sin_ptr, rows_ptr, cache_ptr,
    n_tokens, n_rows, cache_h, cache_n, cache_d,
    D: tl.constexpr, R: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr, TOKENS: tl.constexpr,
    CODEC: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Fill the cache rows of this program; a row outside 0..n_rows - 1 is left out."""
    n_blocks = tl.cdiv(n_tokens, TOKENS)
    head = (tl.program_id(0) // n_blocks).to(tl.int64)
    token = ((tl.program_id(0) % n_blocks).to(tl.int64) * TOKENS + tl.arange(0, TOKENS))[:, None]
    row = tl.load(rows_ptr + token, mask=token < n_tokens, other=-1)
    is_written = (row >= 0) & (row < n_rows)
    target = cache_ptr + head * cache_h + row * cache_n
    dtype = cache_ptr.dtype.element_ty

    if R > 0:
        i = tl.arange(0, BLOCK_HALF)[None, :]
        inside = is_written & (i < R // 2)  # (TOKENS, BLOCK_HALF)
        low = decode(codes_ptr, scale_ptr, zero_ptr, head, token, i, inside, n_tokens, D, CODEC, BITS, GROUP)
        high = decode(codes_ptr, scale_ptr, zero_ptr, head, token, i + R // 2, inside, n_tokens, D, CODEC, BITS, GROUP)
        table = token * R + i
        out_low = low * tl.load(cos_ptr + table, mask=inside) - high * tl.load(sin_ptr + table, mask=inside)
        table += R // 2
        out_high = high * tl.load(cos_ptr + table, mask=inside) + low * tl.load(sin_ptr + table, mask=inside)
        tl.store(target + i * cache_d, saturated(out_low, dtype), mask=inside)
        tl.store(target + (i + R // 2) * cache_d, saturated(out_high, dtype), mask=inside)

    if R < D:
        j = R + tl.arange(0, BLOCK_REST)[None, :]
        copied = is_written & (j < D)
        rest = decode(codes_ptr, scale_ptr, zero_ptr, head, token, j, copied, n_tokens, D, CODEC, BITS, GROUP)
        tl.store(target + j * cache_d, saturated(rest, dtype), mask=copied)


Turn = tuple[torch.Tensor, torch.Tensor] | None


def write_values(values: torch.Tensor, turn: Turn, rows: torch.Tensor, cache: torch.Tensor) -> None:
    """Write as `place.write_values` does."""
    _write((values, values, values), turn, rows, cache, VALUES.value, 8, 1)


def write_int8(codes: torch.Tensor, scale: torch.Tensor, turn: Turn, rows: torch.Tensor, cache: torch.Tensor) -> None:
    """Write as `place.write_int8` does."""
    _write((codes, scale, scale), turn, rows, cache, INT8.value, 8, 1)


def write_fp8(codes: torch.Tensor, scale: torch.Tensor, turn: Turn, rows: torch.Tensor, cache: torch.Tensor) -> None:
    """Write as `place.write_fp8` does."""
    _write((codes, scale, scale), turn, rows, cache, FP8.value, 8, 1)


def write_kivi(
    parts: kivi.Parts, bits: int, group: int, axis: kivi.Axis, turn: Turn, rows: torch.Tensor, cache: torch.Tensor
) -> None:  # fmt: skip
    """Write as `place.write_kivi` does."""
    _write(parts, turn, rows, cache, (KIVI_TOKEN if axis == "token" else KIVI_CHANNEL).value, bits, group)


def _write(
    parts: kivi.Parts, turn: Turn, rows: torch.Tensor, cache: torch.Tensor, codec: int, bits: int, group: int
) -> None:  # fmt: skip
    """Run the kernel over all heads and tokens."""
    (n_heads, n_rows, n_channels), n_tokens = cache.shape, len(rows)
    if n_heads == 0 or n_tokens == 0:
        return
    cos, sin = (table.contiguous() for table in turn) if turn is not None else (parts[1], parts[1])
    rotary_dim = cos.shape[-1] if turn is not None else 0
    blocks = (triton.next_power_of_2(max(1, rotary_dim // 2)), triton.next_power_of_2(max(1, n_channels - rotary_dim)))
    with torch.cuda.device_of(cache):
        write_kernel[(n_heads * triton.cdiv(n_tokens, TOKENS),)](
            *(part.contiguous() for part in parts), cos, sin, within(rows, n_rows), cache,
            n_tokens, n_rows, *cache.stride(), n_channels, rotary_dim, *blocks, TOKENS, codec, bits, group,
        )  # fmt: skip


def within(rows: torch.Tensor, n_rows: int) -> torch.Tensor:
    """Return rows that lie within -1 and n_rows - 1: the gather is the bounds check, as in `rotate_scatter_triton`; -1 stays -1."""
    return torch.arange(-1, n_rows, device=rows.device).index_select(0, rows + 1)
