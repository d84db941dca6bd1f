"""Attention of scattered rows: each row sees the keys at positions up to its own, and inside its window.

A mask aligned to the bottom right, which serves a contiguous continuation, would let scattered rows see their future. Rows are taken in
blocks, and a block reads keys only up to its last row: about half of the rows times keys rectangle is never computed.

    rows 3 5 | 40 41        keys 0 ............ 41
    block 0   reads keys 0..5      (masked: row 3 does not see 4, 5)
    block 1   reads keys 0..41     (masked: row 40 does not see 41)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

# Measured on one core, 512 rows over 2,064 keys: blocks of 16, 32, 64, 256 and all rows took 20, 18.6, 18.4, 23 and 32 ms (12 heads of 64).
_CPU_BLOCK_ROWS = 32
_GPU_BLOCK_ROWS = 1024


@dataclass(frozen=True)
class Block:
    """Rows start to stop - 1 of a pass over keys first to behind - 1.

    `mask` is additive, (rows, keys); None with `is_causal` is the lower triangle, and without it everything is visible.
    """

    start: int
    stop: int
    first: int
    behind: int
    mask: torch.Tensor | None
    is_causal: bool


Observer = Callable[[int, torch.Tensor], None]
"""Takes a layer, and what the last rows of a pass pay attention to in it: (S, T) float32, mean over heads."""

_OBSERVED_AT_ONCE = 128  # rows whose attention of all heads is in memory at one time


@dataclass(frozen=True)
class Sight:
    """What the rows of a pass see: blocks that cover all rows, in order.

    An `observer` is told in each layer what the last `n_observed` rows pay attention to.
    """

    blocks: tuple[Block, ...]
    observer: Observer | None = None
    n_observed: int = 0


def sight_of(rows: Sequence[int], window: int, dtype: torch.dtype, device: torch.device) -> Sight:
    """Return what ascending `rows` see of a sequence that ends with the last of them; window 0 sees all earlier keys."""
    n_rows, n_tokens = len(rows), rows[-1] + 1
    if n_rows == n_tokens and (not window or n_tokens <= window):
        return Sight((Block(0, n_rows, 0, n_tokens, None, n_rows > 1),))
    step = _CPU_BLOCK_ROWS if device.type == "cpu" else _GPU_BLOCK_ROWS
    blocks = []
    for start in range(0, n_rows, step):
        stop = min(start + step, n_rows)
        first, behind = max(0, rows[start] - window + 1) if window else 0, rows[stop - 1] + 1
        mask = _mask(rows[start:stop], first, window, dtype, device) if stop - start > 1 else None
        blocks.append(Block(start, stop, first, behind, mask, is_causal=False))
    return Sight(tuple(blocks))


def _mask(rows: Sequence[int], first: int, window: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return 0 where a key is visible and the lowest finite number elsewhere, (rows, keys from `first` to the last row)."""
    positions, keys = torch.tensor(rows, device=device)[:, None], torch.arange(first, rows[-1] + 1, device=device)
    hidden = keys > positions
    if window:
        hidden |= keys <= positions - window
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, torch.finfo(dtype).min)


def attend(
    module: torch.nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attention_mask: Sight, scaling: float, **_: object
) -> tuple[torch.Tensor, None]:
    """Return the attention (1, S, Q, D) of queries (1, Q, S, D) over keys and values (1, H, T, D); an attention function of a model."""
    if attention_mask.observer is not None:
        attention_mask.observer(int(module.layer_idx), _weights(attention_mask, q, k, scaling))  # type: ignore[arg-type]
    parts = [_attend_block(block, q, k, v, scaling) for block in attention_mask.blocks]
    return torch.cat([part.transpose(1, 2) for part in parts], 1), None


def _attend_block(block: Block, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float) -> torch.Tensor:
    """Return the attention (1, Q, rows, D) of one block."""
    q, k, v = q[:, :, block.start : block.stop], k[:, :, block.first : block.behind], v[:, :, block.first : block.behind]
    if block.mask is not None and q.is_cuda:  # CUDA has no fast kernel for a mask with grouped heads
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    is_grouped = q.shape[1] != k.shape[1]
    return scaled_dot_product_attention(q, k, v, attn_mask=block.mask, is_causal=block.is_causal, scale=scaling, enable_gqa=is_grouped)


def _weights(sight: Sight, q: torch.Tensor, k: torch.Tensor, scaling: float) -> torch.Tensor:
    """Return the attention (S, T) of the last S = `n_observed` rows, mean over heads, in float32."""
    n_rows, n_tokens = q.shape[2], k.shape[2]
    first = n_rows - sight.n_observed
    keys = k[0].float().repeat_interleave(q.shape[1] // k.shape[1], 0)
    parts = []
    for block in sight.blocks:
        for start in range(max(block.start, first), block.stop, _OBSERVED_AT_ONCE):
            stop = min(start + _OBSERVED_AT_ONCE, block.stop)
            scores = q[0, :, start:stop].float() @ keys[:, block.first : block.behind].transpose(1, 2) * scaling
            if block.mask is not None:
                scores += block.mask[start - block.start : stop - block.start].float()
            elif block.is_causal:  # as many rows as keys
                scores += torch.full(scores.shape[1:], -torch.inf, device=q.device).triu(start - block.start + 1)
            parts.append(pad(scores.softmax(-1).mean(0), (block.first, n_tokens - block.behind)))
    return torch.cat(parts)
