"""Triton kernels of `cq`: a program finds the nearest vectors of one run of ROWS tokens, or fetches the vectors of ROWS tokens."""

# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def,no-untyped-call"
# ruff: noqa: N803
from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvkernels import cq

TILE = 4096
FETCHED_ROWS = 16
REACH = tl.constexpr(cq.REACH)


@triton.jit
def nearest_kernel(
    x_ptr, vectors_ptr, found_ptr, n_tokens, n_runs, D: tl.constexpr, COUPLE: tl.constexpr, VECTORS: tl.constexpr, ROWS: tl.constexpr
):
    """Fill found (M, n_tokens, n_runs) from x (M, n_tokens, D) and vectors (M, n_runs, VECTORS, COUPLE); M is layers times heads."""
    n_blocks = tl.cdiv(n_tokens, ROWS)
    head = (tl.program_id(0) // n_blocks // n_runs).to(tl.int64)
    run = tl.program_id(0) // n_blocks % n_runs
    tokens = tl.program_id(0) % n_blocks * ROWS + tl.arange(0, ROWS)
    rows = head * n_tokens + tokens
    vectors = ((head * n_runs + run) * VECTORS + tl.arange(0, VECTORS)) * COUPLE
    score = tl.zeros((ROWS, VECTORS), tl.float32)
    square = tl.zeros((VECTORS,), tl.float32)
    for j in tl.static_range(COUPLE):
        channel = run * COUPLE + j
        x = tl.load(x_ptr + rows * D + channel, mask=(tokens < n_tokens) & (channel < D), other=0.0).to(tl.float32)
        y = tl.load(vectors_ptr + vectors + j).to(tl.float32)
        score += tl.minimum(tl.maximum(x, -REACH), REACH)[:, None] * y[None, :]
        square += y * y
    best = tl.argmax(score - square[None, :] / 2, 1)
    tl.store(found_ptr + rows * n_runs + run, best.to(found_ptr.dtype.element_ty), mask=tokens < n_tokens)


@triton.jit
def gather_kernel(
    found_ptr, vectors_ptr, out_ptr, n_tokens, n_rows, n_runs,
    D: tl.constexpr, BLOCK_D: tl.constexpr, COUPLE: tl.constexpr, VECTORS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Fill out (n_rows, D) with the vectors of found (n_rows, n_runs); n_tokens rows share the vectors of a head of a layer."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channels = tl.arange(0, BLOCK_D)
    inside = (rows[:, None] < n_rows) & (channels[None, :] < D)
    run = channels[None, :] // COUPLE
    found = tl.load(found_ptr + rows[:, None] * n_runs + run, mask=inside, other=0).to(tl.int64)
    vector = ((rows[:, None] // n_tokens) * n_runs + run) * VECTORS + found
    values = tl.load(vectors_ptr + vector * COUPLE + channels[None, :] % COUPLE, mask=inside, other=0.0)
    tl.store(out_ptr + rows[:, None] * D + channels[None, :], values.to(out_ptr.dtype.element_ty), mask=inside)


def nearest(x: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """Return numbers (L, H, T, G) as `cq.reference_nearest` does, int16."""
    n_layers, kv_heads, n_runs, n_vectors, couple = codebooks.shape
    n_tokens, dim = x.shape[2:]
    found = torch.empty((*x.shape[:3], n_runs), dtype=torch.int16, device=x.device)
    rows = max(1, TILE // n_vectors)
    if found.numel():
        with torch.cuda.device_of(x):
            grid = (n_layers * kv_heads * n_runs * triton.cdiv(n_tokens, rows),)
            nearest_kernel[grid](x.contiguous(), codebooks.contiguous(), found, n_tokens, n_runs, dim, couple, n_vectors, rows)
    return found


def gather(nearest: torch.Tensor, codebooks: torch.Tensor, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """Return x' as `cq.reference_gather` does."""
    _, _, n_runs, n_vectors, couple = codebooks.shape
    n_tokens = nearest.shape[2]
    out = torch.empty((*nearest.shape[:3], dim), dtype=dtype, device=nearest.device)
    n_rows = nearest[..., 0].numel()
    if n_rows:
        with torch.cuda.device_of(out):
            block = triton.next_power_of_2(dim)
            gather_kernel[(triton.cdiv(n_rows, FETCHED_ROWS),)](
                nearest.contiguous(), codebooks.contiguous(), out, n_tokens, n_rows, n_runs, dim, block, couple, n_vectors, FETCHED_ROWS
            )
    return out
