"""KIVI's codes whose scales and zeros take a byte each, over the range that loses least where that is asked for.

Groups, axes and packing are those of `kivi`. A column is the groups that lie above each other in its scales (..., R, C): those of a channel
for groups of tokens, those of the same channels in all tokens for groups of channels. With u = 1 / 255 as float32, per column and group:

    least, most, top = least and largest low, largest step of the column       of what `fit` says, in the dtype of x
    zero  = least + z * ((most - least) * u), scale = s * (top * u)            float32, then rounded to the dtype of x; z, s in a byte
    code  = round((x - zero) / scale) within 0 and 2**bits - 1                 0 where scale is 0
    x'    = code * scale + zero                                                as `kivi.decode` has it

`whole_range` is KIVI's fit, from the smallest to the largest value: an element is off by at most scale / 2, and (most - least) / 510 and
(2**bits - 1) * top / 510 where rounding its parameters moved the ends of the range, and by how parameters are rounded to the dtype. A value
far from all others of its column so costs all of them: ten times as far is not seen, fifty times a tenth.
`least_squares` begins with a share of that range and moves twice to the line through its codes (Lloyd's algorithm on evenly spaced levels).
Of normal values in groups of 32, 2 bits lose 0.306 of their norm in place of 0.393, 3 bits 0.152 in place of 0.168 and 4 bits 0.074 in
place of 0.078. It is for values, which attention sums up; keys that are looked for are the farthest, and it cuts those off.

Bits a value, for whole groups: bits + 16 / group, and per column three values of the dtype. x must be finite and below 2**126.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from kvkernels import kivi
from kvkernels.checks import require, require_device, require_value_dtype, require_values

SHARES = {2: 0.75, 3: 0.9, 4: 1.0}
"""How much of a group's range `least_squares` begins with, by bits."""
_TURNS = 2
_TOP_BYTE = 255
_UNIT = 1 / _TOP_BYTE
_TINY = torch.finfo(torch.float32).tiny


class Parts(NamedTuple):
    """What is stored of x: codes as in `kivi`; scale and zero (..., R, C) uint8; ends (..., 3, C): least, most and top of each column."""

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    ends: torch.Tensor


Fit = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
"""Takes groups (A, N) float32, each a column of A values, and bits; returns the lowest level of each and the step between levels, (N,)."""


def whole_range(y: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit the lowest level to the smallest value, and the highest to the largest."""
    low = y.amin(0)
    return low, (y.amax(0) - low) / (2**bits - 1)


def least_squares(y: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit the levels to lose little in the sum of squares."""
    levels, n = 2**bits - 1, len(y)
    low, high = y.amin(0), y.amax(0)
    middle, width = low / 2 + high / 2, high - low
    unit = torch.where(width > 0, width, 1)
    x = (y - middle).div_(unit)  # within -1/2 and 1/2, so that no sum overflows
    codes, product = torch.empty_like(x), torch.empty_like(x)
    step = torch.full_like(width, SHARES[bits] / levels)
    base, sum_x = step * (-levels / 2), _sum(product.copy_(x))
    for _ in range(_TURNS):
        torch.sub(x, base, out=codes).div_(step.clamp(min=_TINY)).round_().clamp_(0, levels)
        sum_cx, sum_cc = (_sum(torch.mul(codes, other, out=product)) for other in (x, codes))
        sum_c = _sum(codes)
        step = ((sum_cx * n - sum_c * sum_x) / (sum_cc * n - sum_c.square()).clamp_(min=1)).clamp_(min=0)  # 1: codes are all alike
        base = (sum_x - step * sum_c) / n
    return base * unit + middle, step * unit


def encode(x: torch.Tensor, bits: int, group: int, axis: kivi.Axis, fit: Fit) -> Parts:
    """Return the parts of x (..., T, D), with bits and groups as `kivi.encode` has them; with torch on any device."""
    require_values("x", x)
    shapes = stored_shapes(x.shape, bits, group, axis)
    low, step = (torch.empty(shapes[1], dtype=torch.float32, device=x.device) for _ in range(2))
    for slab in _slabs(x, bits, group, axis):
        for whole, found in zip((low, step), fit(slab.values(), bits), strict=True):
            slab.of_groups(whole).copy_(found.view(slab.grid))
    scale, zero, ends = _stored(low, step, x.dtype)
    codes = torch.empty(shapes[0], dtype=torch.uint8, device=x.device)
    _fill(codes, x, *parameters(scale, zero, ends), bits, group, axis)
    return Parts(codes, scale, zero, ends)


def decode(parts: Parts, shape: Sequence[int], bits: int, group: int, axis: kivi.Axis, dtype: torch.dtype) -> torch.Tensor:
    """Return x' of shape (..., T, D) in dtype. Raises ValueError when the parts are not those of such a tensor."""
    codes, scale, zero, ends = parts
    _, of_groups, of_columns = stored_shapes(shape, bits, group, axis)
    require_value_dtype("ends", ends.dtype)
    require("ends", ends, of_columns, ends.dtype)
    for name, part in (("scale", scale), ("zero", zero)):
        require(name, part, of_groups, torch.uint8)
        require_device(name, part, ends)
    return kivi.decode(codes, *parameters(scale, zero, ends), shape, bits, group, axis, dtype)


def parameters(scale: torch.Tensor, zero: torch.Tensor, ends: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scales and zeros as `kivi` has them, in the dtype of `ends`."""
    least, most, top = torch.split(ends.float(), 1, -2)
    return (scale * (top * _UNIT)).to(ends.dtype), (zero * ((most - least) * _UNIT)).add_(least).to(ends.dtype)


def stored_shapes(shape: Sequence[int], bits: int, group: int, axis: kivi.Axis) -> tuple[tuple[int, ...], ...]:
    """Return the shape of codes, that of scale and of zero, and that of ends, for x of this shape (..., T, D)."""
    codes, of_groups = kivi.stored_shapes(shape, bits, group, axis)
    return codes, of_groups, (*of_groups[:-2], 3, of_groups[-1])


class _Slab(NamedTuple):
    """Equal groups that are worked on at once: M lines of G groups, W lines beside each other."""

    lines: torch.Tensor
    axis: kivi.Axis
    grid: tuple[int, int, int]
    at: tuple[slice, slice, slice]

    def values(self) -> torch.Tensor:
        """Return the groups (A, M * G * W) in float32, of which some may be the lines themselves."""
        y = torch.unflatten(self.lines, 1, (self.grid[1], -1)).float()  # (M, G, A, W)
        if self.grid[2] == 1:
            return y.reshape(-1, y.shape[2]).t().contiguous()  # for this, torch has a transposition by tiles
        return y.movedim(2, 0).reshape(y.shape[2], -1)

    def of_groups(self, whole: torch.Tensor) -> torch.Tensor:
        """Return the view (M, G, W) of a parameter (..., R, C) of all groups."""
        return kivi.lines(whole, self.axis)[self.at[0], self.at[2]]

    def of_bytes(self, whole: torch.Tensor) -> torch.Tensor:
        """Return the view (M, G, P, W) of all codes."""
        return torch.unflatten(kivi.lines(whole, self.axis)[self.at[0], self.at[1]], 1, (self.grid[1], -1))


def _slabs(x: torch.Tensor, bits: int, group: int, axis: kivi.Axis) -> Iterator[_Slab]:
    """Cut x into slabs."""
    lines = kivi.lines(x, axis)
    for outer, along, in_bytes, in_groups in kivi.slabs(lines.shape, bits, group):
        own = lines[outer, along]
        yield _Slab(own, axis, (own.shape[0], -(-own.shape[1] // group), own.shape[2]), (outer, in_bytes, in_groups))


def _stored(low: torch.Tensor, step: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return scale, zero and ends of fitted parameters (..., R, C)."""
    limit = torch.finfo(dtype).max
    columns = (low.amin(-2, keepdim=True), low.amax(-2, keepdim=True), step.amax(-2, keepdim=True))
    ends = torch.cat(columns, -2).clamp_(-limit, limit).add_(0.0).to(dtype)  # -0 + 0 is +0
    least, most, top = torch.split(ends.float(), 1, -2)
    scale, zero = (
        (x / unit.clamp(min=_TINY)).round_().clamp_(0, _TOP_BYTE).to(torch.uint8)
        for x, unit in ((step, top * _UNIT), (low - least, (most - least) * _UNIT))
    )
    return scale, zero, ends


def _fill(
    codes: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int, group: int, axis: kivi.Axis
) -> None:  # fmt: skip
    """Write the codes of x under these scales and zeros; none that decodes to more than the dtype of x holds."""
    limit = torch.finfo(x.dtype).max
    for slab in _slabs(x, bits, group, axis):
        base, step = (slab.of_groups(part).reshape(1, -1).float() for part in (zero, scale))
        highest = ((limit - base) / step.clamp(min=_TINY)).floor_().clamp_(0, 2**bits - 1).mul_(step > 0)
        y = (slab.values() - base).div_(step.clamp(min=_TINY)).round_().clamp_(min=0)
        torch.minimum(y, highest, out=y)
        packed = torch.empty(1, -(-len(y) * bits // 8), y.shape[1], dtype=torch.uint8, device=x.device)
        kivi.pack_lines(y[None], bits, packed)
        n_lines, n_groups, width = slab.grid
        slab.of_bytes(codes).copy_(packed.view(-1, n_lines, n_groups, width).movedim(0, 2))


def _sum(x: torch.Tensor) -> torch.Tensor:
    """Sum up (A, N) to (N,) by halves, in place: what a group becomes does not depend on those beside it."""
    n = len(x)
    while n > 1:
        x[: n // 2].add_(x[n - n // 2 : n])
        n -= n // 2
    return x[0].clone()
