"""Float4 codes (E2M1) over blocks of 16 channels, whose steps are float8: NVFP4.

    step = (max|x| of the block / 6) as `fp8` codes it: E4M3 with a power-of-two scale per head
    code = x / step rounded to E2M1          see `fp4`; against the step that is stored
    x'   = E2M1 * step                       float32, then rounded to the dtype asked for, in float16 to at most 65504

NVIDIA's format has one float32 scale per tensor; here it is per head, so that heads stay apart. Rounding a step to E4M3 moves it by a
sixteenth at most: a block of equal values comes back within 6.25 %. Size: 4 + 8 / 16 bits a value and 4 B per head.
"""

from __future__ import annotations

import torch

from kvkernels import fp4, fp8
from kvkernels.checks import require, require_value_dtype, require_values

BLOCK = 16
Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # codes, steps, scale


def encode(x: torch.Tensor) -> Parts:
    """Return codes uint8 (..., T, bytes), steps (..., T, B), E4M3 as uint8, and scale (...) float32 of x (..., T, D)."""
    require_values("x", x)
    steps, scale = fp8.encode(fp4.largest(x, BLOCK) / fp4.LARGEST)
    return fp4.encode(x, fp8.decode(steps, scale, torch.float32), BLOCK), steps, scale


def decode(codes: torch.Tensor, steps: torch.Tensor, scale: torch.Tensor, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """Return x' (..., T, dim) in dtype. Raises ValueError when the parts do not belong together."""
    require_value_dtype("dtype", dtype)
    codes_shape, steps_shape = fp4.stored_shapes((*codes.shape[:-1], dim), BLOCK)
    require("codes", codes, codes_shape, torch.uint8)
    require("steps", steps, steps_shape, torch.uint8)
    return fp4.decode(codes, fp8.decode(steps, scale, torch.float32), dim, BLOCK, dtype)
