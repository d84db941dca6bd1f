"""Float4 codes (E2M1) over blocks of channels with a step each: what `nvfp4` and `mxfp4` share.

A code is sign * 8 + index of the magnitude in 0, 0.5, 1, 1.5, 2, 3, 4, 6. x / step is rounded to the nearest of them, half to the even
index, and what is beyond 6 becomes 6; where the step is 0 the code is 0. The last block of a token may be shorter. Codes are packed along
channels as `packing` says, two in a byte.
"""

from __future__ import annotations

import torch

from kvkernels.hadamard import slabs
from kvkernels.packing import pack, packed_nbytes, unpack
from kvkernels.saturate import saturated

LARGEST = 6.0
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def stored_shapes(shape: tuple[int, ...], block: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape of codes, and that of steps, for x of this shape (..., T, D)."""
    *rows, dim = shape
    return (*rows, packed_nbytes(dim, 16)), (*rows, -(-dim // block))


def largest(x: torch.Tensor, block: int) -> torch.Tensor:
    """Return the largest magnitude (..., T, B) float32 of each block of x (..., T, D)."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % block))
    return torch.unflatten(padded, -1, (-1, block)).abs().amax(-1).float()


def encode(x: torch.Tensor, steps: torch.Tensor, block: int) -> torch.Tensor:
    """Return packed codes of x (..., T, D) for float32 steps (..., T, B)."""
    codes_shape, _ = stored_shapes(tuple(x.shape), block)
    codes = torch.empty(codes_shape, dtype=torch.uint8, device=x.device)
    for values, own, into in slabs(x, steps, codes):
        step = own.repeat_interleave(block, -1)[:, : x.shape[-1]]
        into.copy_(pack(_nearest(torch.where(step > 0, values.float() / step, 0)), 16))
    return codes


def decode(codes: torch.Tensor, steps: torch.Tensor, dim: int, block: int, dtype: torch.dtype) -> torch.Tensor:
    """Return magnitude times step (..., T, D), in float16 at most 65504."""
    out = torch.empty((*codes.shape[:-1], dim), dtype=dtype, device=codes.device)
    magnitudes = torch.tensor((*_MAGNITUDES, *(-m for m in _MAGNITUDES)), device=codes.device)
    for into, own, packed in slabs(out, steps, codes):
        step = own.repeat_interleave(block, -1)[:, :dim]
        into.copy_(saturated(magnitudes[unpack(packed, dim, 16).int()].mul_(step), dtype))
    return out


def _nearest(y: torch.Tensor) -> torch.Tensor:
    """Return the codes of y: between two magnitudes, the index grows at their middle, which belongs to the even one."""
    size = y.abs()
    index = (size > 0.25).to(torch.uint8)
    for middle, belongs_to_upper in ((0.75, True), (1.25, False), (1.75, True), (2.5, False), (3.5, True), (5.0, False)):
        index += size >= middle if belongs_to_upper else size > middle
    return index + 8 * (y < 0)
