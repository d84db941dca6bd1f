"""Rotated blocks of channels in numpy: what the codecs `hadamard` and `turboquant` share. Written from section 5 of `proto/FORMAT.md`.

Sums are taken in the order in which the worker takes them, neighbours first, so that values equal the worker's to the last bit.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
LIMIT = np.float32(2.0**127)
_UPPER = {
    1: (0.797885,),
    2: (0.45278, 1.510418),
    3: (0.245094, 0.756005, 1.343909, 2.151946),
    4: (0.128395, 0.388048, 0.656759, 0.94234, 1.256231, 1.618046, 2.069017, 2.73259),
}
LEVELS = {bits: np.array([*(-level for level in reversed(upper)), *upper], np.float32) for bits, upper in _UPPER.items()}
"""Levels of a normal variable in ascending order, by bits."""


def blocks_of(dim: int, bits: int) -> list[tuple[slice, slice]]:
    """Return the channels, and the bytes of their codes, of every block of a head: powers of two, the largest first."""
    sizes = [1 << n for n in reversed(range(dim.bit_length())) if dim >> n & 1]
    nbytes = [-(-size * bits // 8) for size in sizes]
    return [
        (slice(end - size, end), slice(last - n, last))
        for size, end, n, last in zip(sizes, accumulate(sizes), nbytes, accumulate(nbytes), strict=True)
    ]


def rotate(x: Floats) -> Floats:
    """Return H x / sqrt(N) along the last axis, whose length N is a power of two."""
    size = x.shape[-1]
    y = x / np.float32(size)
    for _ in range(size.bit_length() - 1):
        even, odd = y[..., ::2], y[..., 1::2]
        y = np.concatenate((even + odd, even - odd), -1)
    turned: Floats = np.clip(y * np.float32(size**0.5), -LIMIT, LIMIT)
    return turned


def signs_of(dim: int) -> Floats:
    """Return the sign of each channel of a head."""
    mixed = np.arange(1, dim + 1, dtype=np.uint64) * np.uint64(0x9E3779B1) & np.uint64(0xFFFFFFFF)
    mixed = (mixed ^ mixed >> np.uint64(15)) * np.uint64(0x85EBCA77) & np.uint64(0xFFFFFFFF)
    return np.where(mixed >> np.uint64(31), np.float32(-1), np.float32(1))
