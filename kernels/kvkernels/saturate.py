"""Cast without overflow: a decoded value may lie a little beyond what was encoded, and float16 ends at 65504."""

from __future__ import annotations

import torch

FLOAT16_LARGEST = 65504.0


def saturated(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return float32 x rounded to dtype; beyond float16's largest magnitude it becomes that. Other types end where no codec goes."""
    return (x.clamp(-FLOAT16_LARGEST, FLOAT16_LARGEST) if dtype == torch.float16 else x).to(dtype)
