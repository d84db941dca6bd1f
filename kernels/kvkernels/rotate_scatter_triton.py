"""Triton kernel of `rotate_scatter`: one program rotates TOKENS keys of one head and writes them where they belong."""

# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def,no-untyped-call"
# ruff: noqa: N803
from __future__ import annotations

import torch
import triton
import triton.language as tl

TOKENS = 32


@triton.jit
def write_kernel(
    keys_ptr, cos_ptr, sin_ptr, rows_ptr, cache_ptr,
    n_tokens, n_rows,
    keys_h, keys_t, keys_d,
    cache_h, cache_n, cache_d,
    D: tl.constexpr, R: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Fill the cache rows of this program; a row outside 0..n_rows - 1 is left out."""
    n_blocks = tl.cdiv(n_tokens, TOKENS)
    head = (tl.program_id(0) // n_blocks).to(tl.int64)
    token = (tl.program_id(0) % n_blocks).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    row = tl.load(rows_ptr + token, mask=token < n_tokens, other=-1)
    is_written = (row >= 0) & (row < n_rows)
    source = keys_ptr + head * keys_h + token[:, None] * keys_t
    target = cache_ptr + head * cache_h + row[:, None] * cache_n
    dtype = cache_ptr.dtype.element_ty

    i = tl.arange(0, BLOCK_HALF)[None, :]
    inside = is_written[:, None] & (i < R // 2)  # (TOKENS, BLOCK_HALF)
    low = tl.load(source + i * keys_d, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(source + (i + R // 2) * keys_d, mask=inside, other=0.0).to(tl.float32)
    table = token[:, None] * R + i
    out_low = low * tl.load(cos_ptr + table, mask=inside) - high * tl.load(sin_ptr + table, mask=inside)
    table += R // 2
    out_high = high * tl.load(cos_ptr + table, mask=inside) + low * tl.load(sin_ptr + table, mask=inside)
    tl.store(target + i * cache_d, out_low.to(dtype), mask=inside)
    tl.store(target + (i + R // 2) * cache_d, out_high.to(dtype), mask=inside)

    if R < D:
        j = R + tl.arange(0, BLOCK_REST)[None, :]
        copied = is_written[:, None] & (j < D)
        rest = tl.load(source + j * keys_d, mask=copied, other=0.0).to(tl.float32)
        tl.store(target + j * cache_d, rest.to(dtype), mask=copied)


def write(keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rows: torch.Tensor, cache: torch.Tensor) -> None:
    """Rotate and write as `rotate_scatter.write` does."""
    n_heads, n_tokens, n_channels = keys.shape
    if n_heads == 0 or n_tokens == 0:
        return
    rotary_dim, n_rows = cos.shape[1], cache.shape[1]
    blocks = (triton.next_power_of_2(rotary_dim // 2), triton.next_power_of_2(max(1, n_channels - rotary_dim)))
    with torch.cuda.device_of(keys):
        # The gather is the bounds check: torch asserts on the device, and nothing waits for an answer. The kernel masks what is out.
        rows = torch.arange(n_rows, device=rows.device).index_select(0, rows)
        write_kernel[(n_heads * triton.cdiv(n_tokens, TOKENS),)](
            keys, cos.contiguous(), sin.contiguous(), rows, cache,
            n_tokens, n_rows, *keys.stride(), *cache.stride(),
            n_channels, rotary_dim, *blocks, TOKENS,
        )  # fmt: skip
