"""Symbols of few levels under one scale per token: what CacheGen (SIGCOMM 2024, arXiv 2310.07240) hands to its entropy coder.

Of one layer, x (T, C) with the channels of all heads beside each other, and 2 * half + 1 symbols:

    scale  = max |x| of the token                   in the type of x, so exactly
    symbol = round(x / scale * half) + half         float32, half to even; half where scale is 0
    x'     = (symbol - half) * (scale / half)       float32, then rounded to the type of x, float16 at most to its largest value

With anchors, each run of RUN = 10 tokens begins with one that is coded with a byte a channel, ANCHOR = 127 in place of half; of the tokens
behind it the difference to the decoded anchor is coded as x above. Their scale is the largest difference rounded up to the type of x.
"""

from __future__ import annotations

import torch

from kvkernels.saturate import saturated

RUN = 10
ANCHOR = 127


def symbols_of(x: torch.Tensor, half: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return symbols uint8 (T, C) and the scale (T,) of x (T, C)."""
    scale = x.abs().amax(1)
    return _rounded(x.float(), scale.float(), half), scale


def values_of(symbols: torch.Tensor, scale: torch.Tensor, half: int, dtype: torch.dtype) -> torch.Tensor:
    """Return x' (T, C) of symbols and scales."""
    return saturated(_scaled(symbols, scale, half), dtype)


def anchored_symbols_of(x: torch.Tensor, half: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return anchors uint8 (A, C), symbols uint8 (T - A, C) and the scale (T,) of x (T, C), where A = ceil(T / RUN)."""
    first = is_anchor(len(x), x.device)
    scale = x.abs().amax(1)
    anchors = _rounded(x[first].float(), scale[first].float(), ANCHOR)
    rest = differences(x.float(), _scaled(anchors, scale[first], ANCHOR))
    scale[~first] = _rounded_up(rest.abs().amax(1), x.dtype)
    return anchors, _rounded(rest, scale[~first].float(), half), scale


def anchored_values_of(anchors: torch.Tensor, symbols: torch.Tensor, scale: torch.Tensor, half: int, dtype: torch.dtype) -> torch.Tensor:
    """Return x' (T, C) of anchors, symbols and scales."""
    first = is_anchor(len(scale), scale.device)
    near = _scaled(anchors, scale[first], ANCHOR)
    x = near.repeat_interleave(RUN, 0)[: len(scale)]
    x[~first] += _scaled(symbols, scale[~first], half)
    return saturated(x, dtype)


def differences(x: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
    """Return what the tokens (T, C) that are no anchors have beyond the anchor (A, C) of their run: (T - A, C)."""
    return (x - near.repeat_interleave(RUN, 0)[: len(x)])[~is_anchor(len(x), x.device)]


def is_anchor(n_tokens: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Tell of each token (T,) whether a run begins with it."""
    return torch.arange(n_tokens, device=device) % RUN == 0


def _rounded(x: torch.Tensor, scale: torch.Tensor, half: int) -> torch.Tensor:
    """Return the symbols of float32 x (T, C) under scales (T,)."""
    share = torch.where(scale[:, None] > 0, x / scale[:, None], 0)
    return (share * half).round_().add_(half).clamp_(0, 2 * half).to(torch.uint8)


def _scaled(symbols: torch.Tensor, scale: torch.Tensor, half: int) -> torch.Tensor:
    """Return the float32 values of symbols (T, C) under scales (T,)."""
    return (symbols.float() - half) * (scale.float() / half)[:, None]


def _rounded_up(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return float32 x >= 0 in a type, not below x unless float16 ends there."""
    y = saturated(x, dtype)
    above = torch.nextafter(y, torch.full_like(y, torch.finfo(dtype).max))
    return torch.where(y.float() < x, above, y)
