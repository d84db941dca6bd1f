"""Codes for levels that are not evenly spaced, and a few outliers beside them: KVQuant (NeurIPS 2024, arXiv 2401.18079).

All C = H * D channels of a token, in the order h * D + d, are coded with 2**bits levels that ascend from about -1 to about 1 and are the
model's, one set per layer, fitted to how values are distributed there. N values of every token are not coded but kept:

    outliers    of K    those with the largest |x - middle| / half, whose middle and half (C,) are the model's, per channel
                of V    those outside the narrowest range that all others of the token lie in
    middle, half        of V: middle and half the width of that range, rounded to the dtype of x
    code        = number of the level nearest to (x - middle) / half, the lower one of two; of 0 where half is 0
    x'          = level * half + middle                        float32, then rounded to the dtype asked for; outliers as they were

Codes are packed along channels as `packing` says: codes (L, T, packed(C)). Outliers are `kept` (L, T, N), in the dtype of x, and `where`
(L, T, 2 * N), their channels as 16-bit numbers in little-endian bytes. V also has middle and half (L, T, 1).
"""

from __future__ import annotations

import torch

from kvkernels.checks import require, require_device, require_value_dtype, require_values
from kvkernels.packing import pack, packed_nbytes, unpack
from kvkernels.saturate import saturated

MOST_CHANNELS = 1 << 16
_TOKENS_AT_ONCE = 128


def encode_keys(
    x: torch.Tensor, middle: torch.Tensor, half: torch.Tensor, levels: torch.Tensor, n_kept: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return codes, where and kept of x (L, H, T, D) for float32 middle and half (L, C) and levels (L, 2**bits)."""
    _check_values(x, levels, n_kept)
    n_layers, kv_heads, n_tokens, dim = x.shape
    require("middle", middle, (n_layers, kv_heads * dim), torch.float32)
    require("half", half, middle.shape, torch.float32)
    codes, where, kept = _new_parts(x, levels, n_kept)
    for layer in range(n_layers):
        for start in range(0, n_tokens, _TOKENS_AT_ONCE):
            rows = slice(start, start + _TOKENS_AT_ONCE)
            flat = _flat(x[layer, :, rows])
            y = _scaled(flat.float(), middle[layer], half[layer])
            at = y.abs().topk(n_kept, 1).indices
            codes[layer, rows] = _codes(y, levels[layer])
            where[layer, rows], kept[layer, rows] = _bytes_of(at), flat.gather(1, at)
    return codes, where, kept


def encode_values(
    x: torch.Tensor, levels: torch.Tensor, n_kept: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return codes, where, kept, middle and half of x (L, H, T, D) for float32 levels (L, 2**bits)."""
    _check_values(x, levels, n_kept)
    n_layers, _, n_tokens, _ = x.shape
    codes, where, kept = _new_parts(x, levels, n_kept)
    middle, half = (torch.empty(n_layers, n_tokens, 1, dtype=x.dtype, device=x.device) for _ in range(2))
    for layer in range(n_layers):
        for start in range(0, n_tokens, _TOKENS_AT_ONCE):
            rows = slice(start, start + _TOKENS_AT_ONCE)
            flat = _flat(x[layer, :, rows])
            at, low, high = narrowest(flat.float(), n_kept)
            middle[layer, rows], half[layer, rows] = (low / 2 + high / 2).to(x.dtype), (high / 2 - low / 2).to(x.dtype)
            y = _scaled(flat.float(), middle[layer, rows].float(), half[layer, rows].float())
            codes[layer, rows] = _codes(y, levels[layer])
            where[layer, rows], kept[layer, rows] = _bytes_of(at), flat.gather(1, at)
    return codes, where, kept, middle, half


def decode(
    codes: torch.Tensor,
    where: torch.Tensor,
    kept: torch.Tensor,
    middle: torch.Tensor,
    half: torch.Tensor,
    levels: torch.Tensor,
    kv_heads: int,
    n_channels: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return x' (L, H, T, D) in dtype, from middle and half (L, 1, C) of K or (L, T, 1) of V.

    Raises ValueError when the parts are not those of such a tensor; an outlier beyond the last channel is in the last.
    """
    require_value_dtype("dtype", dtype)
    (n_layers, n_tokens), n_kept = kept.shape[:2], kept.shape[2]
    require("codes", codes, (n_layers, n_tokens, packed_nbytes(n_channels, levels.shape[1])), torch.uint8)
    require("where", where, (n_layers, n_tokens, 2 * n_kept), torch.uint8)
    require_device("levels", levels, codes)
    out = torch.empty(n_layers, n_tokens, n_channels, dtype=dtype, device=codes.device)
    for layer in range(n_layers):
        for start in range(0, n_tokens, _TOKENS_AT_ONCE):
            rows = slice(start, start + _TOKENS_AT_ONCE)
            y = levels[layer][unpack(codes[layer, rows], n_channels, levels.shape[1]).int()]
            step, centre = (part[layer, rows if part.shape[1] > 1 else slice(None)].float() for part in (half, middle))
            out[layer, rows] = saturated(y.mul_(step).add_(centre), dtype)
            out[layer, rows].scatter_(1, _channels_of(where[layer, rows], n_channels), kept[layer, rows].to(dtype))
    return torch.unflatten(out, 2, (kv_heads, -1)).transpose(1, 2)


def narrowest(x: torch.Tensor, n_kept: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the channels (T, n_kept) outside the narrowest range that holds all others of x (T, C), and its ends (T, 1) each."""
    ordered, channel = x.sort(dim=1, stable=True)
    n_inside = x.shape[1] - n_kept
    first = (ordered[:, n_inside - 1 :] - ordered[:, : n_kept + 1]).argmin(1, keepdim=True)  # of n_kept + 1 ranges
    place = torch.arange(n_kept, device=x.device)
    outside = channel.gather(1, torch.where(place < first, place, place + n_inside))
    return outside, ordered.gather(1, first), ordered.gather(1, first + n_inside - 1)


def _flat(x: torch.Tensor) -> torch.Tensor:
    """Return x (H, T, D) as (T, C)."""
    return x.transpose(0, 1).flatten(1)


def _scaled(x: torch.Tensor, middle: torch.Tensor, half: torch.Tensor) -> torch.Tensor:
    """Return x in halves from the middle; 0 where there is no range."""
    return torch.where(half > 0, (x - middle) / half, 0)


def _codes(y: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Return the packed numbers of the levels (2**bits,) nearest to y (T, C)."""
    return pack(torch.bucketize(y.contiguous(), levels[:-1] / 2 + levels[1:] / 2), len(levels))


def _bytes_of(channels: torch.Tensor) -> torch.Tensor:
    """Return int64 (T, N) as 16-bit numbers, uint8 (T, 2 * N)."""
    return torch.stack((channels & 255, channels >> 8), -1).flatten(1).to(torch.uint8)


def _channels_of(where: torch.Tensor, n_channels: int) -> torch.Tensor:
    """Return what `_bytes_of` was given, cut to the channels there are."""
    low, high = where[:, ::2].long(), where[:, 1::2].long()
    return (low | high << 8).clamp(max=n_channels - 1)


def _new_parts(x: torch.Tensor, levels: torch.Tensor, n_kept: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Allocate codes, where and kept."""
    n_layers, kv_heads, n_tokens, dim = x.shape
    nbytes = packed_nbytes(kv_heads * dim, levels.shape[1])
    codes, where = (torch.empty(n_layers, n_tokens, n, dtype=torch.uint8, device=x.device) for n in (nbytes, 2 * n_kept))
    return codes, where, torch.empty(n_layers, n_tokens, n_kept, dtype=x.dtype, device=x.device)


def _check_values(x: torch.Tensor, levels: torch.Tensor, n_kept: int) -> None:
    """Raise unless these are values with levels for every layer, and some values are left to code."""
    require_values("x", x)
    require("levels", levels, (len(x), levels.shape[1]), torch.float32)
    require_device("levels", levels, x)
    n_channels = x.shape[1] * x.shape[3]
    if not 0 <= n_kept < n_channels <= MOST_CHANNELS:
        raise ValueError(f"x: {n_channels} channels of which {n_kept} are kept; keep fewer, of {MOST_CHANNELS} at most")
