"""Quantizers that need no tables; written from section 5 of `proto/FORMAT.md`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kvclient.reader.artifact import STORED_TYPES
from kvclient.reader.fields import Fields, Floats, Geometry, Pair, Shape, numbers, rounded, saturated, widen, with_axis
from kvclient.reader.rotation import LEVELS, LIMIT, blocks_of, rotate, signs_of
from kvclient.reader.steps import Step
from kvstore.core.manifest import ITEM_NBYTES
from kvstore.core.stages import Param

Decode = Callable[[Fields, Geometry, Step], Pair]
"""Takes the fields of a quantizer and returns k (L, H, T, D) and v (L, H, T, Dv)."""
Catalogue = Mapping[str, tuple[Decode, Mapping[str, Sequence[Param]]]]
"""Quantizers by name, and the values that each of their parameters may have."""


DecodeSide = Callable[[Fields, str, Geometry, Step], Floats]


def by_side(decode_side: DecodeSide) -> Decode:
    """Return what decodes first K, then V."""

    def decode(fields: Fields, geometry: Geometry, step: Step) -> Pair:
        k, v = (decode_side(fields, side, geometry, step) for side in "kv")
        return k, v

    return decode


def _raw(fields: Fields, side: str, geometry: Geometry, step: Step) -> Floats:
    """Return the values as they stand."""
    shape, dtype = geometry.shape(side), geometry.dtype
    return fields.floats(f"{side}.values", dtype, shape)


def _exponent_split(fields: Fields, side: str, geometry: Geometry, step: Step) -> Floats:
    """Put the bits of each value together again."""
    shape, dtype = geometry.shape(side), geometry.dtype
    exponent = fields.take(f"{side}.exponent", "uint8", shape).astype(np.uint32)
    rest = fields.take(f"{side}.rest", "uint8", (ITEM_NBYTES[dtype] - 1, *shape)).astype(np.uint32)
    top = (rest[0] & 0x80) << 8 | exponent << 7 | rest[0] & 0x7F
    if dtype == "float32":
        whole: NDArray[np.uint32] = top << 16 | rest[1] << 8 | rest[2]
        return whole.view(np.float32)
    return widen(top.astype("<u2").view(STORED_TYPES[dtype]), dtype)


def _int8(fields: Fields, side: str, geometry: Geometry, step: Step) -> Floats:
    """Return code times scale."""
    shape, dtype = geometry.shape(side), geometry.dtype
    codes = fields.take(f"{side}.codes", "int8", shape).astype(np.float32)
    return rounded(codes * fields.floats(f"{side}.scale", "float32", (*shape[:-1], 1)), dtype)


def _fp8(fields: Fields, side: str, geometry: Geometry, step: Step) -> Floats:
    """Return float8 value times scale."""
    shape, dtype = geometry.shape(side), geometry.dtype
    values = E4M3[fields.take(f"{side}.codes", "uint8", shape)]
    return saturated(values * fields.floats(f"{side}.scale", "float32", shape[:2])[..., None, None], dtype)


def _e4m3() -> Floats:
    """Return the value of each of the 256 codes of float8 E4M3."""
    code = np.arange(128)
    exponent, fraction = code >> 3, code & 7
    magnitude = np.where(exponent == 0, fraction * 2.0**-9, (8 + fraction) * 2.0 ** (exponent - 10))
    magnitude[127] = np.nan
    return np.concatenate((magnitude, -magnitude)).astype(np.float32)


E4M3 = _e4m3()
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def _nvfp4(fields: Fields, side: str, geometry: Geometry, step: Step) -> Floats:
    """Return float4 value times the float8 step of its 16 channels."""
    shape, dtype = geometry.shape(side), geometry.dtype
    codes = fields.take(f"{side}.codes", "uint8", with_axis(shape, -1, -(-shape[-1] // 2)))
    steps = E4M3[fields.take(f"{side}.steps", "uint8", with_axis(shape, -1, -(-shape[-1] // 16)))]
    return _fp4(codes, steps * fields.floats(f"{side}.scale", "float32", shape[:2])[..., None, None], 16, shape, dtype)


def _mxfp4(fields: Fields, side: str, geometry: Geometry, step: Step) -> Floats:
    """Return float4 value times the power of two of its 32 channels."""
    shape, dtype = geometry.shape(side), geometry.dtype
    codes = fields.take(f"{side}.codes", "uint8", with_axis(shape, -1, -(-shape[-1] // 2)))
    exponents = fields.take(f"{side}.steps", "uint8", with_axis(shape, -1, -(-shape[-1] // 32))).astype(np.uint32)
    return _fp4(codes, (exponents << 23).view(np.float32), 32, shape, dtype)


def _fp4(codes: NDArray[np.uint8], steps: Floats, block: int, shape: Shape, dtype: str) -> Floats:
    """Return float4 values times the steps of their blocks of channels."""
    values = _E2M1[numbers(codes, 4, shape[-1])]
    return saturated(values * _spread(steps, block, -1, shape[-1]), dtype)


def _kivi(fields: Fields, side: str, geometry: Geometry, step: Step) -> Floats:
    """Return code times scale plus zero; keys are grouped along tokens, values along channels."""
    packed, of_groups = _packed(fields, side, geometry, step)
    scale, zero = (fields.floats(f"{side}.{name}", geometry.dtype, of_groups) for name in ("scale", "zero"))
    return _grouped(packed, scale, zero, side, geometry, step)


def _clipped(fields: Fields, side: str, geometry: Geometry, step: Step) -> Floats:
    """Return what `_kivi` does of scales and zeros that are bytes between the ends of their column."""
    packed, of_groups = _packed(fields, side, geometry, step)
    scale, zero = (fields.take(f"{side}.{name}", "uint8", of_groups).astype(np.float32) for name in ("scale", "zero"))
    least, most, top = np.split(fields.floats(f"{side}.ends", geometry.dtype, with_axis(of_groups, -2, 3)), 3, -2)
    zero = rounded(zero * ((most - least) * _BYTE) + least, geometry.dtype)
    return _grouped(packed, rounded(scale * (top * _BYTE), geometry.dtype), zero, side, geometry, step)


_BYTE = np.float32(1 / 255)
_GROUPED: dict[str, Literal[-2, -1]] = {"k": -2, "v": -1}
"""The axis that groups lie along."""


def _packed(fields: Fields, side: str, geometry: Geometry, step: Step) -> tuple[NDArray[np.uint8], Shape]:
    """Return the bytes of codes in groups, and the shape of a parameter of the groups."""
    shape, axis = geometry.shape(side), _GROUPED[side]
    packed = fields.take(f"{side}.codes", "uint8", with_axis(shape, axis, -(-shape[axis] * step.number("bits") // 8)))
    return packed, with_axis(shape, axis, -(-shape[axis] // step.number("group")))


def _grouped(packed: NDArray[np.uint8], scale: Floats, zero: Floats, side: str, geometry: Geometry, step: Step) -> Floats:
    """Return code times scale plus zero."""
    axis, group = _GROUPED[side], step.number("group")
    length = geometry.shape(side)[axis]
    codes = numbers(np.moveaxis(packed, axis, -1), step.number("bits"), length)
    scale, zero = (_spread(parameter, group, axis, length) for parameter in (scale, zero))
    return rounded(np.moveaxis(codes, -1, axis).astype(np.float32) * scale + zero, geometry.dtype)


def _hadamard(fields: Fields, side: str, geometry: Geometry, step: Step) -> Floats:
    """Return code times scale plus zero of every block, turned back."""
    shape, dtype = geometry.shape(side), geometry.dtype
    bits = step.number("bits")
    blocks = blocks_of(shape[-1], bits)
    packed = fields.take(f"{side}.codes", "uint8", with_axis(shape, -1, blocks[-1][1].stop))
    scale, zero = (fields.floats(f"{side}.{name}", dtype, with_axis(shape, -1, len(blocks))) for name in ("scale", "zero"))
    out = np.empty(shape, np.float32)
    for n, (own, place) in enumerate(blocks):
        codes = numbers(packed[..., place], bits, own.stop - own.start).astype(np.float32)
        out[..., own] = rotate(codes * scale[..., n : n + 1] + zero[..., n : n + 1])
    return saturated(out, dtype)


def _turboquant(fields: Fields, side: str, geometry: Geometry, step: Step) -> Floats:
    """Return levels of every block turned back, with the channels' signs, times its norm."""
    shape, dtype = geometry.shape(side), geometry.dtype
    bits = step.number(f"{side}_bits")
    blocks = blocks_of(shape[-1], bits)
    packed = fields.take(f"{side}.codes", "uint8", with_axis(shape, -1, blocks[-1][1].stop))
    norm = fields.floats(f"{side}.norm", dtype, with_axis(shape, -1, len(blocks)))
    out, signs = np.empty(shape, np.float32), signs_of(shape[-1])
    for n, (own, place) in enumerate(blocks):
        size = own.stop - own.start
        y = rotate(LEVELS[bits][numbers(packed[..., place], bits, size)]) * signs[own]
        out[..., own] = np.clip(y * (norm[..., n : n + 1] / np.float32(size**0.5)), -LIMIT, LIMIT)
    return saturated(out, dtype)


def _spread(parameters: Floats, group: int, axis: int, length: int) -> Floats:
    """Repeat each group's parameter for the positions of its group."""
    return np.repeat(parameters, group, axis).take(range(length), axis)


_GRID = {"bits": (2, 3, 4), "group": (8, 16, 32, 64, 128, 256)}
QUANTIZERS: Catalogue = {
    "raw": (by_side(_raw), {}),
    "exponent_split": (by_side(_exponent_split), {}),
    "int8": (by_side(_int8), {}),
    "fp8": (by_side(_fp8), {}),
    "nvfp4": (by_side(_nvfp4), {}),
    "mxfp4": (by_side(_mxfp4), {}),
    "kivi": (by_side(_kivi), _GRID),
    "clipped": (by_side(_clipped), _GRID),
    "hadamard": (by_side(_hadamard), {"bits": (2, 3, 4)}),
    "turboquant": (by_side(_turboquant), {"k_bits": (1, 2, 3, 4), "v_bits": (1, 2, 3, 4)}),
}
