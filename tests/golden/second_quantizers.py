"""Section 5 of proto/FORMAT.md: quantizers that need no tables."""

from __future__ import annotations

import math

import numpy as np

from tests.golden.second_parts import Part, e4m3, numbers, rounded, saturated, take


def raw(part: Part, side: str) -> np.ndarray:
    """Return the values as they are."""
    return take(part, f"{side}.values", part.dtype, part.geometry.shape(side))


def exponent_split(part: Part, side: str) -> np.ndarray:
    """Put the bits of values together."""
    shape = part.geometry.shape(side)
    exponent = take(part, f"{side}.exponent", "uint8", shape).astype("<u4")
    rest = take(part, f"{side}.rest", "uint8", ((4 if part.dtype == "float32" else 2) - 1, *shape)).astype("<u4")
    t = (rest[0] & 0x80) << 8 | exponent << 7 | (rest[0] & 0x7F)
    if part.dtype == "float32":
        return (t << 16 | rest[1] << 8 | rest[2]).view("<f4")
    return (t << 16).view("<f4") if part.dtype == "bfloat16" else t.astype("<u2").view("<f2").astype("<f4")


def int8(part: Part, side: str) -> np.ndarray:
    """Return code * scale."""
    shape = part.geometry.shape(side)
    codes = take(part, f"{side}.codes", "int8", shape).astype("<f4")
    return rounded(codes * take(part, f"{side}.scale", "float32", (*shape[:3], 1)), part.dtype)


def fp8(part: Part, side: str) -> np.ndarray:
    """Return value * scale."""
    shape = part.geometry.shape(side)
    codes = take(part, f"{side}.codes", "uint8", shape)
    return saturated(e4m3(codes) * take(part, f"{side}.scale", "float32", shape[:2])[..., None, None], part.dtype)


def e2m1(part: Part, side: str, step: np.ndarray, block: int) -> np.ndarray:
    """Return codes of float4 E2M1 times the steps of their blocks."""
    shape = part.geometry.shape(side)
    packed = take(part, f"{side}.codes", "uint8", (*shape[:3], -(-shape[3] // 2)))
    sizes = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    values = np.array([*sizes, *(-size for size in sizes)], "<f4")
    channels = [values[packed[..., d // 2] >> d % 2 * 4 & 15] * step[..., d // block] for d in range(shape[3])]
    return saturated(np.stack(channels, -1), part.dtype)


def nvfp4(part: Part, side: str) -> np.ndarray:
    """Return float4 values times float8 steps."""
    shape = part.geometry.shape(side)
    step = e4m3(take(part, f"{side}.steps", "uint8", (*shape[:3], -(-shape[3] // 16))))
    return e2m1(part, side, step * take(part, f"{side}.scale", "float32", shape[:2])[..., None, None], 16)


def mxfp4(part: Part, side: str) -> np.ndarray:
    """Return float4 values times powers of two."""
    shape = part.geometry.shape(side)
    exponent = take(part, f"{side}.steps", "uint8", (*shape[:3], -(-shape[3] // 32)))
    return e2m1(part, side, (exponent.astype("<u4") << 23).view("<f4"), 32)


def in_groups(part: Part, side: str, scale: np.ndarray, zero: np.ndarray, packed: np.ndarray) -> np.ndarray:
    """Return code * scale + zero, with lines along T for K and along D for V."""
    shape, axis = part.geometry.shape(side), 2 if side == "k" else 3
    codes = numbers(np.moveaxis(packed, axis, -1), part.params["bits"], shape[axis]).astype("<f4")
    of = np.arange(shape[axis]) // part.params["group"]
    scale, zero = (np.moveaxis(parameter, axis, -1)[..., of] for parameter in (scale, zero))
    return rounded(np.ascontiguousarray(np.moveaxis(codes * scale + zero, -1, axis)), part.dtype)


def codes_of_groups(part: Part, side: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the bytes of codes and the shape of what each group has."""
    shape, axis = part.geometry.shape(side), 2 if side == "k" else 3
    n_bytes, n_groups = -(-shape[axis] * part.params["bits"] // 8), -(-shape[axis] // part.params["group"])
    of_bytes, of_groups = ((*shape[:axis], length, *shape[axis + 1 :]) for length in (n_bytes, n_groups))
    return take(part, f"{side}.codes", "uint8", of_bytes), of_groups


def kivi(part: Part, side: str) -> np.ndarray:
    """Return code * scale + zero."""
    packed, of_groups = codes_of_groups(part, side)
    scale, zero = (take(part, f"{side}.{name}", part.dtype, of_groups) for name in ("scale", "zero"))
    return in_groups(part, side, scale, zero, packed)


def clipped(part: Part, side: str) -> np.ndarray:
    """Return code * scale + zero, of which each is one of 256 between the ends of its column."""
    packed, of_groups = codes_of_groups(part, side)
    s, z = (take(part, f"{side}.{name}", "uint8", of_groups).astype("<f4") for name in ("scale", "zero"))
    ends = take(part, f"{side}.ends", part.dtype, (*of_groups[:2], 3, of_groups[3]))
    u = np.array(0x3B808081, "<u4").view("<f4")
    scale = s * (ends[:, :, 2:] * u)
    zero = ends[:, :, :1] + z * ((ends[:, :, 1:2] - ends[:, :, :1]) * u)
    return in_groups(part, side, rounded(scale, part.dtype), rounded(zero, part.dtype), packed)


def blocks_of(dim: int, bits: int) -> list[tuple[int, int, int]]:
    """Return first channel, channels and first byte of every block of a head."""
    found, start, at = [], 0, 0
    while start < dim:
        n = 1 << (dim - start).bit_length() - 1
        found.append((start, n, at))
        start, at = start + n, at - (-n * bits // 8)
    return found


def turned(y: np.ndarray) -> np.ndarray:
    """Return H y / sqrt(N) along the last axis."""
    n = y.shape[-1]
    matrix = np.array([[-1.0 if (i & j).bit_count() % 2 else 1.0 for j in range(n)] for i in range(n)])
    return (y.astype(float) @ matrix / math.sqrt(n)).astype("<f4")


def hadamard(part: Part, side: str) -> np.ndarray:
    """Return H (code * scale + zero) / sqrt(N) of every block."""
    shape, bits = part.geometry.shape(side), part.params["bits"]
    blocks = blocks_of(shape[3], bits)
    codes = take(part, f"{side}.codes", "uint8", (*shape[:3], sum(-(-n * bits // 8) for _, n, _ in blocks)))
    scale, zero = (take(part, f"{side}.{name}", part.dtype, (*shape[:3], len(blocks))) for name in ("scale", "zero"))
    found = [
        turned(numbers(codes[..., at : at - (-n * bits // 8)], bits, n).astype("<f4") * scale[..., i : i + 1] + zero[..., i : i + 1])
        for i, (_, n, at) in enumerate(blocks)
    ]
    return saturated(np.concatenate(found, -1), part.dtype)


UPPER_LEVELS = {
    1: (0.797885,),
    2: (0.45278, 1.510418),
    3: (0.245094, 0.756005, 1.343909, 2.151946),
    4: (0.128395, 0.388048, 0.656759, 0.94234, 1.256231, 1.618046, 2.069017, 2.73259),
}


def sign_of(channel: int) -> float:
    """Return s of a channel of a head."""
    n = (channel + 1) * 0x9E3779B1 % 2**32
    return -1.0 if (n ^ n >> 15) * 0x85EBCA77 % 2**32 >> 31 else 1.0


def turboquant(part: Part, side: str) -> np.ndarray:
    """Return s (H level[code]) norm / N of every block."""
    shape, bits = part.geometry.shape(side), part.params[f"{side}_bits"]
    blocks, upper = blocks_of(shape[3], bits), UPPER_LEVELS[bits]
    levels = np.array([*(-level for level in reversed(upper)), *upper], "<f4")
    codes = take(part, f"{side}.codes", "uint8", (*shape[:3], sum(-(-n * bits // 8) for _, n, _ in blocks)))
    norm = take(part, f"{side}.norm", part.dtype, (*shape[:3], len(blocks)))
    found = []
    for i, (start, n, at) in enumerate(blocks):
        y = turned(levels[numbers(codes[..., at : at - (-n * bits // 8)], bits, n)])
        signs = np.array([sign_of(channel) for channel in range(start, start + n)], "<f4")
        found.append(y * signs * (norm[..., i : i + 1] / np.float32(math.sqrt(n))))
    return saturated(np.concatenate(found, -1), part.dtype)


QUANTIZERS = {
    "raw": raw,
    "exponent_split": exponent_split,
    "int8": int8,
    "fp8": fp8,
    "nvfp4": nvfp4,
    "mxfp4": mxfp4,
    "kivi": kivi,
    "clipped": clipped,
    "hadamard": hadamard,
    "turboquant": turboquant,
}
