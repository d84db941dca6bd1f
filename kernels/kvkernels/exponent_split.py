"""Lossless split of floats into an exponent plane, which an entropy coder shrinks, and the rest, which it cannot.

Read a value as an unsigned integer and number its bits from 0, the lowest. `top` is its upper 16 bits (for the 16-bit dtypes, all of it):

    exponent[i] = top bits 14..7                      bfloat16, float32: the exponent; float16: exponent and 3 mantissa bits
    rest[0, i]  = top bit 15 as bit 7, top bits 6..0  the sign and the highest mantissa bits
    rest[1, i]  = bits 15..8 of a float32
    rest[2, i]  = bits  7..0 of a float32

Planes are uint8 and as large as the raw bytes together. Every bit pattern comes back: NaN payloads, infinities, -0, subnormals.
A float32 tensor that was cast from bfloat16 has zeros in rest[1:].
"""

from __future__ import annotations

import torch

from kvkernels import backend
from kvkernels.checks import require, require_device, require_value_dtype, require_values

WORD = {2: torch.int16, 4: torch.int32}
"""The integer dtype that a float of so many bytes is read as."""


def encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the exponent plane uint8 (..., T, D) and the rest uint8 (itemsize - 1, ..., T, D) of x (..., T, D)."""
    require_values("x", x)
    if not backend.runs_triton(x):
        return reference_encode(x)
    from kvkernels import exponent_split_triton

    return exponent_split_triton.encode(x)


def decode(exponent: torch.Tensor, rest: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return x (..., T, D), bit for bit. Raises ValueError when the planes are not those of a dtype tensor."""
    require_value_dtype("dtype", dtype)
    require("exponent", exponent, exponent.shape, torch.uint8)
    require("rest", rest, (dtype.itemsize - 1, *exponent.shape), torch.uint8)
    require_device("rest", rest, exponent)
    if not backend.runs_triton(exponent):
        return reference_decode(exponent, rest, dtype)
    from kvkernels import exponent_split_triton

    return exponent_split_triton.decode(exponent, rest, dtype)


def reference_encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode with torch on any device; see `encode`."""
    words = x.contiguous().view(WORD[x.itemsize]).view(-1)
    exponent = torch.empty(words.shape, dtype=torch.uint8, device=x.device)
    rest = torch.empty((x.itemsize - 1, len(words)), dtype=torch.uint8, device=x.device)
    slabs = (torch.split(t, backend.SLAB, -1) for t in (words, exponent, rest))
    for word, exponent_slab, rest_slab in zip(*slabs, strict=True):
        top = word >> 8 * (x.itemsize - 2)  # sign-extended: only the low 16 bits are read below
        exponent_slab.copy_(top >> 7)  # a cast to uint8 keeps the low 8 bits
        rest_slab[0].copy_((top >> 8).bitwise_xor_(top).bitwise_and_(0x80).bitwise_xor_(top))  # bit 7 from bit 15, 6..0 from top
        for plane, low in enumerate(range(x.itemsize - 3, -1, -1), start=1):
            rest_slab[plane].copy_(word >> 8 * low)
    return exponent.view(x.shape), rest.view(len(rest), *x.shape)


def reference_decode(exponent: torch.Tensor, rest: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Decode with torch on any device; see `decode`."""
    int_dtype = WORD[dtype.itemsize]
    out = torch.empty(exponent.shape, dtype=dtype, device=exponent.device)
    slabs = (torch.split(t, backend.SLAB, -1) for t in (out.view(int_dtype).view(-1), exponent.reshape(-1), rest.reshape(len(rest), -1)))
    for word, exponent_slab, rest_slab in zip(*slabs, strict=True):
        signed = rest_slab[0].view(torch.int8).to(int_dtype)  # a set bit 7 fills all bits above it
        top = exponent_slab.to(int_dtype).bitwise_left_shift_(7).bitwise_or_(signed.bitwise_and_(~0x7F80))  # drop the filling of 14..7
        for plane in rest_slab[1:]:
            top.bitwise_left_shift_(8).bitwise_or_(plane)
        word.copy_(top)
    return out
