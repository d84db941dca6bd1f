"""Codes of the best levels for a normal distribution, in a rotated basis where every vector looks like one: TurboQuant (arXiv 2504.19874).

Channels are cut into blocks of powers of two as in `hadamard`, and each block is coded apart:

    norm = ||x||                            rounded to the dtype of x, in float16 to at most 65504
    y    = H (s x) / norm                   s a fixed sign per channel: bit 31 of `_hash` is set where it is -1
    code = the nearest of the 2**bits Lloyd-Max levels of a standard normal variable; a middle belongs to the lower one
    x'   = s H level[code] * norm / N       float32, then rounded to the dtype asked for, in float16 to at most 65504

x is divided by a power of two before squares are taken, and those are summed neighbour by neighbour, so that the norm does not overflow
and is the same everywhere. Squared error of a normal vector, over its squares: 0.363, 0.1175, 0.0345, 0.0095 for 1 to 4 bits. The
paper's correction by another bit, which makes inner products unbiased, is left out: without it attention is more exact.
Size: bits + 16 / N bits a value in 16-bit dtypes; codes (..., T, bytes), norm (..., T, B).
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import torch

from kvkernels import backend
from kvkernels.checks import require, require_device, require_value_dtype, require_values
from kvkernels.hadamard import LIMIT, blocks_of, rotate, slabs
from kvkernels.packing import pack, packed_nbytes, unpack
from kvkernels.saturate import saturated

_POSITIVE = {
    1: (0.797885,),
    2: (0.45278, 1.510418),
    3: (0.245094, 0.756005, 1.343909, 2.151946),
    4: (0.128395, 0.388048, 0.656759, 0.94234, 1.256231, 1.618046, 2.069017, 2.73259),
}
LEVELS = {bits: (*(-level for level in reversed(upper)), *upper) for bits, upper in _POSITIVE.items()}
"""Levels in ascending order, by bits."""


def middles_of(bits: int) -> tuple[float, ...]:
    """Return the middles between neighbouring levels."""
    return tuple((low + high) / 2 for low, high in pairwise(LEVELS[bits]))


@cache
def signs_of(dim: int) -> torch.Tensor:
    """Return the sign (D,) float32 of each channel."""
    return torch.tensor([-1.0 if _hash(channel) >> 31 else 1.0 for channel in range(dim)])


def _hash(channel: int) -> int:
    """Return 32 bits that look random."""
    mixed = (channel + 1) * 0x9E3779B1 & 0xFFFFFFFF
    return (mixed ^ mixed >> 15) * 0x85EBCA77 & 0xFFFFFFFF


def encode(x: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes uint8 and norm of x (..., T, D) with 1 to 4 bits a value."""
    require_values("x", x)
    _check_bits(bits)
    if not backend.runs_triton(x):
        return reference_encode(x, bits)
    from kvkernels import turboquant_triton

    return turboquant_triton.encode(x, bits)


def decode(codes: torch.Tensor, norm: torch.Tensor, dim: int, bits: int, dtype: torch.dtype) -> torch.Tensor:
    """Return x' (..., T, dim) in dtype. Raises ValueError when the parts are not those of such a tensor."""
    require_value_dtype("dtype", dtype)
    require_value_dtype("norm", norm.dtype)
    _check_bits(bits)
    codes_shape, norm_shape = stored_shapes((*codes.shape[:-1], dim), bits)
    require("codes", codes, codes_shape, torch.uint8)
    require("norm", norm, norm_shape, norm.dtype)
    require_device("norm", norm, codes)
    if not backend.runs_triton(codes):
        return reference_decode(codes, norm, dim, bits, dtype)
    from kvkernels import turboquant_triton

    return turboquant_triton.decode(codes, norm, dim, bits, dtype)


def stored_shapes(shape: tuple[int, ...], bits: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape of codes, and that of norm, for x of this shape (..., T, D)."""
    blocks, nbytes = blocks_of(shape[-1], bits)
    return (*shape[:-1], nbytes), (*shape[:-1], len(blocks))


def new_parts(x: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Allocate what encoding x fills."""
    codes_shape, norm_shape = stored_shapes(tuple(x.shape), bits)
    return torch.empty(codes_shape, dtype=torch.uint8, device=x.device), torch.empty(norm_shape, dtype=x.dtype, device=x.device)


def reference_encode(x: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode with torch on any device; see `encode`."""
    codes, norm = new_parts(x, bits)
    signs, middles = signs_of(x.shape[-1]).to(x.device), torch.tensor(middles_of(bits), device=x.device)
    for values, packed, norms in slabs(x, codes, norm):
        for n, block in enumerate(blocks_of(x.shape[-1], bits)[0]):
            channels = slice(block.start, block.start + block.size)
            unit, length = _split(values[:, channels].float())
            y = rotate(unit * signs[channels]).mul_(block.size**0.5)
            own = pack(torch.bucketize(y, middles), 2**bits)
            packed[:, block.at : block.at + own.shape[1]] = own
            norms[:, n] = saturated(length, x.dtype)
    return codes, norm


def reference_decode(codes: torch.Tensor, norm: torch.Tensor, dim: int, bits: int, dtype: torch.dtype) -> torch.Tensor:
    """Decode with torch on any device; see `decode`."""
    out = torch.empty((*codes.shape[:-1], dim), dtype=dtype, device=codes.device)
    signs, levels = signs_of(dim).to(codes.device), torch.tensor(LEVELS[bits], device=codes.device)
    for values, packed, norms in slabs(out, codes, norm):
        for n, block in enumerate(blocks_of(dim, bits)[0]):
            channels = slice(block.start, block.start + block.size)
            own = packed[:, block.at : block.at + packed_nbytes(block.size, 2**bits)]
            y = rotate(levels[unpack(own, block.size, 2**bits).int()]).mul_(signs[channels])
            length = norms[:, n : n + 1].float() / block.size**0.5
            values[:, channels] = saturated((y * length).clamp_(-LIMIT, LIMIT), dtype)
    return out


def _split(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x / ||x|| and ||x|| of rows (N, block): zeros where x is."""
    exponent = x.abs().amax(1, keepdim=True).view(torch.int32) & 0x7F800000
    scaled = x * (0x7F000000 - exponent).view(torch.float32)  # largest magnitude within 1 and 2
    squares = scaled.square()
    while squares.shape[1] > 1:
        squares = squares[:, ::2] + squares[:, 1::2]
    length = squares.double().sqrt().float()  # correctly rounded, which torch's float32 root is not on every CPU
    inverse = torch.where(length > 0, length.reciprocal(), 0)
    return scaled * inverse, (length * exponent.view(torch.float32)).clamp_(max=LIMIT)[:, 0]


def _check_bits(bits: int) -> None:
    """Raise unless there is such a codec."""
    if bits not in LEVELS:
        raise ValueError(f"turboquant: bits {bits}; choose one of {tuple(LEVELS)}")
