"""Rounding inside Triton kernels, equal to torch's to the last bit."""

# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def,no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def round_half_even(x):
    """Round float32 |x| < 2**22 to an integer, half to even: next to 1.5 * 2**23 one unit in the last place is 1."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def round_toward_zero(x, dtype: tl.constexpr):
    """Cast positive float32 to dtype, never upwards: where the cast went up, step its bits down by one."""
    y = x.to(dtype)
    if dtype != tl.float32:
        went_up = (y.to(tl.float32) > x).to(tl.int16)
        y = (y.to(tl.int16, bitcast=True) - went_up).to(dtype, bitcast=True)
    return y


@triton.jit
def nearest(x, dtype: tl.constexpr):
    """Cast finite float32 to the nearest of dtype, half to even; the interpreter's own cast to bfloat16 is not that."""
    if dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return bits.to(tl.int16).to(tl.bfloat16, bitcast=True)
    return x.to(dtype)


@triton.jit
def saturated(x, dtype: tl.constexpr):
    """Cast float32 as `kvkernels.saturate.saturated` does; NaN stays."""
    if dtype == tl.float16:
        x = tl.where(x > 65504.0, 65504.0, tl.where(x < -65504.0, -65504.0, x))
    return x.to(dtype)
