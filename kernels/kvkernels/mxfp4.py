"""Float4 codes (E2M1) over blocks of 32 channels, whose steps are powers of two: MXFP4 (OCP Microscaling Formats 1.0).

    step = 2**(floor(log2(max|x| of the block)) - 2)    stored as its exponent + 127 in one byte (E8M0), at least 1
    code = x / step rounded to E2M1                     see `fp4`; |x / step| is below 8, and what is beyond 6 becomes 6
    x'   = E2M1 * step                                  float32, then rounded to the dtype asked for

The largest value of a block may lose a quarter. Size: 4 + 8 / 32 bits a value. A stored byte of 0, which no encoder writes, means 0.
"""

from __future__ import annotations

import torch

from kvkernels import fp4
from kvkernels.checks import require, require_value_dtype, require_values

BLOCK = 32


def encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes uint8 (..., T, bytes) and steps uint8 (..., T, B) of x (..., T, D)."""
    require_values("x", x)
    steps = ((fp4.largest(x, BLOCK).view(torch.int32) >> 23) - 2).clamp(1, 254).to(torch.uint8)
    return fp4.encode(x, _step(steps), BLOCK), steps


def decode(codes: torch.Tensor, steps: torch.Tensor, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """Return x' (..., T, dim) in dtype. Raises ValueError when the parts do not belong together."""
    require_value_dtype("dtype", dtype)
    codes_shape, steps_shape = fp4.stored_shapes((*codes.shape[:-1], dim), BLOCK)
    require("codes", codes, codes_shape, torch.uint8)
    require("steps", steps, steps_shape, torch.uint8)
    return fp4.decode(codes, _step(steps), dim, BLOCK, dtype)


def _step(steps: torch.Tensor) -> torch.Tensor:
    """Return powers of two as float32: the byte is the exponent of a float32 as it stands there."""
    return (steps.to(torch.int32) << 23).view(torch.float32)
