"""Group-wise asymmetric codes of 2, 3 or 4 bits: KIVI (ICML 2024, arXiv 2402.02750).

A group is `group` consecutive values along one axis: axis "token" groups tokens of one channel (for keys, whose outliers keep to a few
channels), axis "channel" groups channels of one token (for values). The last group of an axis may be shorter; it has its own scale.

    zero  = min of the group                                stored in the dtype of x, so exactly; -0 is stored as +0
    step  = max((max - min) / (2**bits - 1), 2**-19)        float32, correctly rounded
    scale = step rounded toward zero to the dtype of x      so that no decoded value leaves [min, max]
    code  = min(round((x - zero) / scale), 2**bits - 1)     float32, half to even, against the stored zero and scale
    x'    = code * scale + zero                             float32, then rounded to the dtype asked for

An element is off by at most scale / 2 (plus float32 rounding) before the last cast: rounding the scale toward zero lowers the topmost
level by at most 15 units in its last place, which is below scale / 2 for scales of 2**-19 and more in all three dtypes. That sets the floor
(1e-8, the usual guard against equal values, is zero in float16): groups narrower than it decode to within 2**-20.
Scale and zero have the dtype of x so that none overflows: float16 would, for bfloat16 models. x must be finite and below 2**127.

Packing is little-endian along the grouped axis, in words as `packing` has them: 4 codes of 2 bits or 2 of 4 bits in a byte, 8 codes of
3 bits in three bytes. Code j of a word takes its bits bits * j and up; unused high bits are 0, and bytes without codes are not stored.

    axis "token"    codes (..., ceil(T * bits / 8), D)    scale, zero (..., ceil(T / group), D)
    axis "channel"  codes (..., T, ceil(D * bits / 8))    scale, zero (..., T, ceil(D / group))

Bits a value, for 16-bit x and whole groups: bits + 32 / group (3.0, 4.0 and 5.0 in groups of 32); `nbytes` is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import prod
from typing import Literal

import torch

from kvkernels import backend
from kvkernels.checks import require, require_device, require_value_dtype, require_values
from kvkernels.packing import WORDS

Axis = Literal["token", "channel"]
Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # codes, scale, zero
SCALE_FLOOR = 2.0**-19
AXES: tuple[Axis, ...] = ("token", "channel")
BITS = (2, 3, 4)
GROUPS = (8, 16, 32, 64, 128, 256)


def encode(x: torch.Tensor, bits: int, group: int, axis: Axis) -> Parts:
    """Return codes uint8, scale and zero of x (..., T, D), with 2, 3 or 4 bits a value in groups of 8, 16, ..., 256 along axis."""
    require_values("x", x)
    _check_grid(bits, group, axis)
    from kvkernels import kivi_compiled

    if backend.runs_triton(x):
        from kvkernels import kivi_triton

        return kivi_triton.encode(x, bits, group, axis)
    return kivi_compiled.encode(x, axis) if kivi_compiled.encodes(x, bits, group, axis) else reference_encode(x, bits, group, axis)


def decode(
    codes: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    shape: Sequence[int],
    bits: int,
    group: int,
    axis: Axis,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return x' of shape (..., T, D) in dtype. Raises ValueError when the parts are not those of such a tensor."""
    require_value_dtype("dtype", dtype)
    require_value_dtype("scale", scale.dtype)
    codes_shape, parameter_shape = stored_shapes(shape, bits, group, axis)
    require("codes", codes, codes_shape, torch.uint8)
    require("scale", scale, parameter_shape, scale.dtype)
    require("zero", zero, parameter_shape, scale.dtype)
    require_device("scale", scale, codes)
    require_device("zero", zero, codes)
    from kvkernels import kivi_compiled

    if backend.runs_triton(codes):
        from kvkernels import kivi_triton

        return kivi_triton.decode(codes, scale, zero, shape, bits, group, axis, dtype)
    if dtype == scale.dtype and kivi_compiled.decodes((codes, scale, zero), tuple(shape), bits, group, axis):
        return kivi_compiled.decode((codes, scale, zero), tuple(shape), axis)
    return reference_decode(codes, scale, zero, shape, bits, group, axis, dtype)


def stored_shapes(shape: Sequence[int], bits: int, group: int, axis: Axis) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape of codes, and that of scale and of zero, for x of this shape (..., T, D)."""
    _check_grid(bits, group, axis)
    if len(shape) < 2 or min(shape) < 0 or shape[-1] == 0:
        raise ValueError(f"shape {tuple(shape)} is not (..., T, D) with D >= 1")
    *lead, n_tokens, n_channels = shape
    if axis == "token":
        return (*lead, _ceil(n_tokens * bits, 8), n_channels), (*lead, _ceil(n_tokens, group), n_channels)
    return (*lead, n_tokens, _ceil(n_channels * bits, 8)), (*lead, n_tokens, _ceil(n_channels, group))


def nbytes(shape: Sequence[int], bits: int, group: int, axis: Axis, dtype: torch.dtype) -> int:
    """Return the stored bytes of x of this shape and dtype: codes, plus scale and zero in the dtype of x."""
    codes_shape, parameter_shape = stored_shapes(shape, bits, group, axis)
    return prod(codes_shape) + 2 * dtype.itemsize * prod(parameter_shape)


def reference_encode(x: torch.Tensor, bits: int, group: int, axis: Axis) -> Parts:
    """Encode with torch on any device; see `encode`."""
    parts = new_parts(x, bits, group, axis)
    values = lines(x, axis)
    codes, scale, zero = (lines(part, axis) for part in parts)
    for outer, along, in_bytes, in_groups in slabs(values.shape, bits, group):
        _encode_slab(values[outer, along], codes[outer, in_bytes], scale[outer, in_groups], zero[outer, in_groups], bits)
    return parts


def reference_decode(
    codes: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    shape: Sequence[int],
    bits: int,
    group: int,
    axis: Axis,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Decode with torch on any device; see `decode`."""
    out = torch.empty(tuple(shape), dtype=dtype, device=codes.device)
    values = lines(out, axis)
    codes, scale, zero = (lines(part, axis) for part in (codes, scale, zero))
    for outer, along, in_bytes, in_groups in slabs(values.shape, bits, group):
        _decode_slab(codes[outer, in_bytes], scale[outer, in_groups], zero[outer, in_groups], bits, values[outer, along])
    return out


def new_parts(x: torch.Tensor, bits: int, group: int, axis: Axis) -> Parts:
    """Allocate what encoding x fills."""
    codes_shape, parameter_shape = stored_shapes(x.shape, bits, group, axis)
    scale = torch.empty(parameter_shape, dtype=x.dtype, device=x.device)
    return torch.empty(codes_shape, dtype=torch.uint8, device=x.device), scale, torch.empty_like(scale)


def lines(x: torch.Tensor, axis: Axis) -> torch.Tensor:
    """View (..., T, D) as (M, A, W): M times W lines of A values that run along the grouped axis. Copies x if its strides demand it."""
    *lead, n_tokens, n_channels = x.shape
    if axis == "token":
        return x.reshape(prod(lead), n_tokens, n_channels)
    return x.reshape(prod(lead) * n_tokens, n_channels, 1)


def rounded_toward_zero(step: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Cast positive float32 to dtype, never upwards: where the cast went up, step its bits down by one."""
    scale = step.to(dtype)
    return scale if dtype == torch.float32 else (scale.view(torch.int16) - (scale.float() > step).to(torch.int16)).view(dtype)


def _encode_slab(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> None:
    """Fill codes (M, P, W), scale and zero (M, G, W) from x (M, A, W), which is G equal groups."""
    levels = 2**bits - 1
    y = torch.unflatten(x, 1, (scale.shape[1], -1)).to(torch.float32, copy=True)  # (M, G, A / G, W)
    low, high = y.amin(2), y.amax(2)
    zero.copy_(low.add_(0.0))  # -0 + 0 is +0
    step = high.sub_(low).div_(levels).clamp_(min=SCALE_FLOOR)
    scale.copy_(rounded_toward_zero(step, scale.dtype))
    y.sub_(low.unsqueeze(2)).div_(scale.float().unsqueeze(2)).round_().clamp_(max=levels)
    pack_lines(y.flatten(1, 2), bits, codes)


def _decode_slab(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int, out: torch.Tensor) -> None:
    """Fill out (M, A, W), G equal groups, from codes (M, P, W), scale and zero (M, G, W)."""
    y = torch.unflatten(_unpack(codes, bits)[:, : out.shape[1]], 1, (scale.shape[1], -1))  # (M, G, A / G, W)
    y.mul_(scale.float().unsqueeze(2)).add_(zero.float().unsqueeze(2))
    out.copy_(y.flatten(1, 2))


def pack_lines(codes: torch.Tensor, bits: int, out: torch.Tensor) -> None:
    """Write codes (M, A, W), integers in float32, into the bytes of out (M, P, W); overwrites codes."""
    per_word, word_nbytes = WORDS[2**bits]
    padded = torch.nn.functional.pad(codes, (0, 0, 0, -codes.shape[1] % per_word))
    digits = torch.unflatten(padded, 1, (-1, per_word))  # (M, words, k, W)
    words = digits[:, :, 0]
    for j in range(1, per_word):
        words.add_(digits[:, :, j], alpha=1 << bits * j)  # below 2**24, so exact
    if word_nbytes == 1:
        out.copy_(words)
        return
    whole = words.to(torch.int32)
    for n in range(word_nbytes):
        plane = out[:, n::word_nbytes]
        plane.copy_((whole[:, : plane.shape[1]] >> 8 * n).bitwise_and_(255))


def _unpack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the float32 codes (M, words * k, W) of bytes (M, P, W)."""
    per_word, word_nbytes = WORDS[2**bits]
    words = codes
    if word_nbytes > 1:
        planes = torch.nn.functional.pad(codes, (0, 0, 0, -codes.shape[1] % word_nbytes)).to(torch.int32)
        words = sum((planes[:, n::word_nbytes] << 8 * n for n in range(1, word_nbytes)), planes[:, ::word_nbytes])
    digits = torch.empty((words.shape[0], words.shape[1], per_word, words.shape[2]), device=codes.device)
    for j in range(per_word):
        digits[:, :, j] = (words >> bits * j).bitwise_and_(2**bits - 1)
    return digits.flatten(1, 2)


def slabs(shape: torch.Size, bits: int, group: int) -> Iterator[tuple[slice, slice, slice, slice]]:
    """Cut (M, A, W) lines into slabs of equal groups: yield slices of M, of A, and of the bytes and the groups that A becomes."""
    n_outer, length, width = shape
    whole = length - length % group
    span = group * max(1, backend.SLAB // (group * width))
    cuts = [*range(0, whole, span), whole, length]
    for start, stop in pairwise(cuts):
        height = max(1, backend.SLAB // max(1, (stop - start) * width))
        along, in_bytes = slice(start, stop), slice(start * bits // 8, _ceil(stop * bits, 8))
        in_groups = slice(start // group, _ceil(stop, group))
        for outer in range(0, n_outer if stop > start else 0, height):
            yield slice(outer, outer + height), along, in_bytes, in_groups


def _check_grid(bits: int, group: int, axis: Axis) -> None:
    """Raise unless the codec is defined for these parameters."""
    if bits not in BITS or group not in GROUPS or axis not in AXES:
        raise ValueError(f"kivi: bits {bits}, group {group}, axis {axis!r}; choose bits in {BITS}, group in {GROUPS}, token or channel")


def _ceil(n: int, divisor: int) -> int:
    """Divide, rounding up."""
    return -(-n // divisor)
