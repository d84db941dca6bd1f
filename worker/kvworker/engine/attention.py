"""Attention of scattered rows: each row sees the keys at positions up to its own, and inside its window.

A mask aligned to the bottom right, which serves a contiguous continuation, would let scattered rows see their future. Rows are taken in
blocks, and a block reads keys only up to its last row: about half of the rows times keys rectangle is never computed.

    rows 3 5 | 40 41        keys 0 ............ 41
    block 0   reads keys 0..5      (masked: row 3 does not see 4, 5)
    block 1   reads keys 0..41     (masked: row 40 does not see 41)

Rows of a segment that stands apart see nothing before it. Rows behind segments side by side weigh those as one part: scores over the
temperature T, and the log of their summed exponentials times scale times T, before one softmax over everything (APE, arXiv 2502.05431).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from kvworker.engine.arrangement import IN_TURN, Arrangement, SideBySide

# Measured on one core, 512 rows over 2,064 keys: blocks of 16, 32, 64, 256 and all rows took 20, 18.6, 18.4, 23 and 32 ms (12 heads of 64).
_CPU_BLOCK_ROWS = 32
_GPU_BLOCK_ROWS = 1024
_WEIGHED_AT_ONCE = 64  # rows whose scores of all heads are in memory at one time
_NOTHING = -1e30  # a log of summed exponentials below it has no visible key


@dataclass(frozen=True)
class Block:
    """Rows start to stop - 1 of a pass over keys first to behind - 1.

    `mask` is additive, (rows, keys); None with `is_causal` is the lower triangle, and without it everything is visible. `weighed` are the
    keys of segments side by side.
    """

    start: int
    stop: int
    first: int
    behind: int
    mask: torch.Tensor | None
    is_causal: bool
    weighed: SideBySide | None = None


Observer = Callable[[int, torch.Tensor, torch.Tensor], None]
"""Takes a layer, queries (Q, S, D) of the last rows of a pass, scaled as its scores are, and what those pay attention to: (S, T) float32,
mean over heads."""

_OBSERVED_AT_ONCE = 128  # rows whose attention of all heads is in memory at one time


@dataclass(frozen=True)
class Sight:
    """What the rows of a pass see: blocks that cover all rows, in order.

    An `observer` is told in each layer what the last `n_observed` rows pay attention to.
    """

    blocks: tuple[Block, ...]
    observer: Observer | None = None
    n_observed: int = 0


def sight_of(rows: Sequence[int], window: int, dtype: torch.dtype, device: torch.device, arrangement: Arrangement = IN_TURN) -> Sight:
    """Return what ascending `rows` see of a sequence that ends with the last of them; window 0 sees all earlier keys."""
    n_rows, n_tokens = len(rows), rows[-1] + 1
    if n_rows == n_tokens and (not window or n_tokens <= window) and arrangement == IN_TURN:
        return Sight((Block(0, n_rows, 0, n_tokens, None, n_rows > 1),))
    shared = arrangement.side_by_side
    n_before = bisect_left(rows, shared.stop) if shared else n_rows
    step = _CPU_BLOCK_ROWS if device.type == "cpu" else _GPU_BLOCK_ROWS
    blocks = [_block(rows, start, min(start + step, n_before), window, dtype, device, arrangement) for start in range(0, n_before, step)]
    for start in range(n_before, n_rows, _WEIGHED_AT_ONCE):
        blocks.append(_weighed_block(rows, start, min(start + _WEIGHED_AT_ONCE, n_rows), window, device, arrangement))
    return Sight(tuple(blocks))


def _block(
    rows: Sequence[int], start: int, stop: int, window: int, dtype: torch.dtype, device: torch.device, arrangement: Arrangement
) -> Block:
    """Return what rows[start:stop] see, which do not lie behind segments side by side."""
    own = rows[start:stop]
    lows = [arrangement.low(row) for row in own]
    first = max(min(lows), own[0] - window + 1 if window else 0)
    mask = _additive(_hidden(own, lows, first, window, device), dtype) if len(own) > 1 else None
    return Block(start, stop, first, own[-1] + 1, mask, is_causal=False)


def _hidden(rows: Sequence[int], lows: Sequence[int], first: int, window: int, device: torch.device) -> torch.Tensor:
    """Return which keys, from `first` to the last row, each row does not see, (rows, keys)."""
    at, keys = torch.tensor(rows, device=device)[:, None], torch.arange(first, rows[-1] + 1, device=device)
    hidden = keys > at
    if any(low > first for low in lows):
        hidden |= keys < torch.tensor(lows, device=device)[:, None]
    if window:
        hidden |= keys <= at - window
    return hidden


def _weighed_block(rows: Sequence[int], start: int, stop: int, window: int, device: torch.device, arrangement: Arrangement) -> Block:
    """Return what rows[start:stop] see, which lie behind segments side by side: a window reaches back over positions, not rows."""
    own = rows[start:stop]
    shared = arrangement.side_by_side
    assert shared
    hidden = _hidden(own, [arrangement.low(row) for row in own], 0, 0, device)
    hidden[:, list(shared.copies)] = True
    if window:
        at, keys = (torch.tensor([arrangement.position(row) for row in of], device=device) for of in (own, range(own[-1] + 1)))
        hidden |= keys <= at[:, None] - window
    return Block(start, stop, 0, own[-1] + 1, _additive(hidden, torch.float32), is_causal=False, weighed=shared)


def _additive(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return 0 where a key is visible and the lowest finite number elsewhere."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, torch.finfo(dtype).min)


def attend(
    module: torch.nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attention_mask: Sight, scaling: float, **_: object
) -> tuple[torch.Tensor, None]:
    """Return the attention (1, S, Q, D) of queries (1, Q, S, D) over keys and values (1, H, T, D); an attention function of a model."""
    if attention_mask.observer is not None:
        weights = _weights(attention_mask, q, k, scaling)
        attention_mask.observer(int(module.layer_idx), q[0, :, -weights.shape[0] :] * scaling, weights)  # type: ignore[arg-type]
    parts = [_attend_block(block, q, k, v, scaling) for block in attention_mask.blocks]
    return torch.cat([part.transpose(1, 2) for part in parts], 1), None


def _attend_block(block: Block, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float) -> torch.Tensor:
    """Return the attention (1, Q, rows, D) of one block."""
    q, k, v = q[:, :, block.start : block.stop], k[:, :, block.first : block.behind], v[:, :, block.first : block.behind]
    if block.weighed is not None:
        return _attend_weighed(block.weighed, block.mask, q, k, v, scaling)
    if block.mask is not None and q.is_cuda:  # CUDA has no fast kernel for a mask with grouped heads
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    is_grouped = q.shape[1] != k.shape[1]
    return scaled_dot_product_attention(q, k, v, attn_mask=block.mask, is_causal=block.is_causal, scale=scaling, enable_gqa=is_grouped)


def _attend_weighed(
    shared: SideBySide, mask: torch.Tensor | None, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Return the attention (1, Q, rows, D), computed in float32, of rows that weigh some keys."""
    assert mask is not None
    grouped = q.float().reshape(1, k.shape[1], -1, q.shape[-1])  # the rows of all query heads that share keys
    scores = grouped @ k.float().transpose(2, 3) * scaling + mask.repeat(q.shape[1] // k.shape[1], 1)
    return (_weigh(scores, shared).softmax(-1) @ v.float()).view(*q.shape[:-1], -1).to(q.dtype)


def _weigh(scores: torch.Tensor, shared: SideBySide) -> torch.Tensor:
    """Return scores (..., keys), in float32, with those of segments side by side weighed."""
    temperature, scale = shared.weights.temperature, shared.weights.scale
    inside = scores[..., shared.first : shared.stop] / temperature
    mass = inside.logsumexp(-1, keepdim=True)
    inside = inside + (scale * temperature - 1) * mass.masked_fill(mass < _NOTHING, 0)
    return torch.cat((scores[..., : shared.first], inside, scores[..., shared.stop :]), -1)


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
            scores = _weigh(scores, block.weighed) if block.weighed else scores
            parts.append(pad(scores.softmax(-1).mean(0), (block.first, n_tokens - block.behind)))
    return torch.cat(parts)
