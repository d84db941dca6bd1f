"""Compiled forms of `kivi` with 4 bits in groups of 32 for the CPU, for axes that are whole groups; see `compiled`.

Groups of tokens are (N, GROUP, D), groups of channels (N, GROUP). A compiler is fast along a last axis and slow at reducing it, so groups
of channels are encoded as if they were tokens: GROUP groups make a tile, which is turned before and behind. It keeps float32 where the
definition rounds to 16 bits, so forms cut scales toward zero by their bits. Bytes of channels are spread to one per code by fours, in an
int64: it makes vectors of those, but none of int16.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvkernels import kivi
from kvkernels.checks import require_value_dtype
from kvkernels.compiled import call_form, compile_form, has_form, preparing

BITS, GROUP, TOP = 4, 32, 15
_SPREAD = ((16, 0x0000FFFF0000FFFF), (8, 0x00FF00FF00FF00FF), (4, 0x0F0F0F0F0F0F0F0F))


def cut(step: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return positive float32 rounded toward zero to what dtype holds, as float32."""
    if dtype == torch.float32:
        return step
    kept = (step.view(torch.int32) & (-1 << 16 if dtype == torch.bfloat16 else -1 << 13)).view(torch.float32)
    return kept if dtype == torch.bfloat16 else torch.where(step < 2.0**-14, (step * 2.0**24).floor() * 2.0**-24, kept)  # subnormal


def range_of(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return groups x (N, GROUP, D) in float32, their scales and lowest values (N, 1, D)."""
    values = x.float()
    low, high = -((-values).amax(1, keepdim=True)), values.amax(1, keepdim=True)  # amin beside amax is not vectorised
    return values, cut(((high - low) / TOP).clamp(min=kivi.SCALE_FLOOR), x.dtype), low


def encode_tokens_form(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the bytes (N, GROUP / 2, D) of groups x (N, GROUP, D), two tokens of one channel each, with scale and low (N, 1, D)."""
    values, scale, low = range_of(x)
    pairs = torch.unflatten(values, 1, (-1, 2))
    first, second = (((pairs[:, :, n] - low) / scale).round().clamp(max=TOP) for n in range(2))
    return (first + 2**BITS * second).to(torch.uint8), scale, low


def turn_form(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return tiles (N, A, B) as (N, B, A)."""
    return (x.transpose(1, 2).contiguous(),)


def token_values_form(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return values (N, GROUP, D), in the dtype of scale (N, 1, D), of bytes (N, GROUP / 2, D)."""
    pairs = torch.stack([_values(part, scale, zero) for part in (codes & TOP, codes >> BITS)], 2)  # of bytes it would not be fused
    return (pairs.flatten(1, 2),)


def channel_values_form(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return values (N, GROUP), in the dtype of scale (N, 1), of bytes (N, GROUP / 2)."""
    wide = codes.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    for shift, mask in _SPREAD:
        wide = (wide | wide << shift) & mask
    return (_values(wide.view(torch.uint8), scale, zero),)


def _values(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """Return what one byte per code stands for."""
    return (codes.float() * scale.float() + zero.float()).to(scale.dtype)


def prepare(head_dim: int, dtype: torch.dtype) -> None:
    """Compile for heads of this many channels, which takes seconds; needs a C++ compiler."""
    require_value_dtype("dtype", dtype)
    with preparing() as made:
        x = torch.ones(64, GROUP, head_dim, dtype=dtype)
        packed, scale, low = compile_form(made, "kivi_encode_token", encode_tokens_form, x)
        compile_form(made, "kivi_values_token", token_values_form, packed, scale.to(dtype), low.to(dtype))
        (turned,) = compile_form(made, "kivi_turn", turn_form, torch.ones(64, GROUP, GROUP, dtype=dtype))
        packed, scale, low = compile_form(made, "kivi_encode_token", encode_tokens_form, turned)
        (packed,) = compile_form(made, "kivi_turn", turn_form, packed)
        parameters = (part.to(dtype).view(-1, 1) for part in (scale, low))
        compile_form(made, "kivi_values_channel", channel_values_form, packed.view(-1, GROUP // 2), *parameters)


def encodes(x: torch.Tensor, bits: int, group: int, axis: kivi.Axis) -> bool:
    """Tell whether `encode` takes x."""
    if not _is_whole(x.shape, bits, group, axis) or not x.is_contiguous():
        return False
    return has_form("kivi_turn", _tiles(x)) if axis == "channel" else has_form("kivi_encode_token", x.view(-1, GROUP, x.shape[-1]))


def encode(x: torch.Tensor, axis: kivi.Axis) -> kivi.Parts:
    """Return codes, scale and zero as `kivi.encode` does."""
    codes_shape, parameter_shape = kivi.stored_shapes(x.shape, BITS, GROUP, axis)
    encode_groups = _encode_channels if axis == "channel" else _encode_tokens
    packed, scale, low = encode_groups(x)
    low.add_(0.0)  # -0 + 0 is +0
    return packed.view(codes_shape), scale.to(x.dtype).view(parameter_shape), low.to(x.dtype).view(parameter_shape)


def _encode_tokens(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return bytes, scales and lowest values of groups of tokens of x (..., T, D)."""
    return call_form("kivi_encode_token", x.view(-1, GROUP, x.shape[-1]))


def _encode_channels(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return bytes (N, GROUP / 2), scales and lowest values (N,) of the N groups of channels of x; the last tile is filled up."""
    n_groups = x.numel() // GROUP
    lines = torch.nn.functional.pad(x.view(-1, GROUP), (0, 0, 0, -n_groups % GROUP)) if n_groups % GROUP else x
    packed, scale, low = call_form("kivi_encode_token", *call_form("kivi_turn", _tiles(lines)))
    (packed,) = call_form("kivi_turn", packed)
    return packed.view(-1, GROUP // 2)[:n_groups], scale.view(-1)[:n_groups], low.view(-1)[:n_groups]


def decodes(parts: kivi.Parts, shape: tuple[int, ...], bits: int, group: int, axis: kivi.Axis) -> bool:
    """Tell whether `decode` takes these."""
    if not _is_whole(shape, bits, group, axis) or not all(part.is_contiguous() for part in parts) or parts[0].storage_offset() % 4:
        return False
    return has_form(f"kivi_values_{axis}", *_by_group(parts, shape, axis))


def decode(parts: kivi.Parts, shape: tuple[int, ...], axis: kivi.Axis) -> torch.Tensor:
    """Return x' in the dtype of scale as `kivi.decode` does."""
    (x,) = call_form(f"kivi_values_{axis}", *_by_group(parts, shape, axis))
    return x.view(shape)


def _is_whole(shape: Sequence[int], bits: int, group: int, axis: kivi.Axis) -> bool:
    """Tell whether the axis is whole groups of the kind that is compiled."""
    length = shape[-2 if axis == "token" else -1]
    return (bits, group) == (BITS, GROUP) and length > 0 and length % GROUP == 0


def _tiles(x: torch.Tensor) -> torch.Tensor:
    """Return the groups of channels of x, GROUP by GROUP, without those that fill no tile: a view (N, GROUP, GROUP)."""
    n_tiles = x.numel() // GROUP**2
    return x.view(-1)[: n_tiles * GROUP**2].view(n_tiles, GROUP, GROUP)


def _by_group(parts: kivi.Parts, shape: Sequence[int], axis: kivi.Axis) -> kivi.Parts:
    """View codes, scale and zero of (..., T, D) by groups."""
    width = (shape[-1],) if axis == "token" else ()
    codes, scale, zero = parts
    return codes.view(-1, GROUP // 2, *width), scale.view(-1, 1, *width), zero.view(-1, 1, *width)
