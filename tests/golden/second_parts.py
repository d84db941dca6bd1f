"""What the decoders of the second reader share: a part with its fields, and how numbers are packed and rounded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tests.golden.second_packings import require

Pair = tuple[np.ndarray, np.ndarray]
Tables = dict[int, dict[str, np.ndarray]]
LARGEST = {"float32": np.finfo("<f4").max, "bfloat16": np.float32(2.0**128 - 2.0**120), "float16": np.float32(65504)}


class Geometry(NamedTuple):
    """What a stage sees of a part: `rows` layers of tensors, which `layers` of the model are in them, and the sizes of K and V."""

    rows: int
    layers: tuple[int, ...]
    heads: int
    tokens: int
    k_dim: int
    v_dim: int

    def shape(self, side: str) -> tuple[int, int, int, int]:
        """Return (L, H, T, D)."""
        return self.rows, self.heads, self.tokens, self.k_dim if side == "k" else self.v_dim


class Part(NamedTuple):
    """The fields of a part that nobody took yet, and what its stage needs to know."""

    fields: dict[str, tuple[str, np.ndarray]]
    geometry: Geometry
    dtype: str
    params: Mapping[str, Any]
    tables: Tables

    def table(self, name: str) -> list[np.ndarray]:
        """Return a table of every row's layer."""
        return [self.tables[layer][name] for layer in self.geometry.layers[: self.geometry.rows]]


def take(part: Part, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Take a field out, checking its type and shape; floats become float32."""
    found, array = part.fields.pop(name)
    require(found == dtype and array.shape == shape, name)
    if dtype == "bfloat16":
        return (array.astype("<u4") << 16).view("<f4")
    return array.astype("<f4") if "float" in dtype else array


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """Round float32 to the chunk's type, ties to even."""
    if dtype == "float16":
        return x.astype("<f2").astype("<f4")
    if dtype == "bfloat16":
        bits = x.view("<u4").astype("<u8")
        low, high = bits & 0xFFFF, bits >> 16
        goes_up = (low > 0x8000) | ((low == 0x8000) & (high % 2 == 1))
        return ((high + goes_up) << 16).astype("<u4").view("<f4")
    return x


def saturated(x: np.ndarray, dtype: str) -> np.ndarray:
    """Rounded, but in float16 to at most 65504."""
    return rounded(np.clip(x, -65504, 65504) if dtype == "float16" else x, dtype)


def digits(data: np.ndarray, levels: int, k: int, b: int, n: int) -> np.ndarray:
    """Return n codes (..., n) of words of k codes and b bytes (..., B), the last word perhaps shorter."""
    words = np.zeros((*data.shape[:-1], -(-n // k)), "<u8")
    for byte in range(data.shape[-1]):
        words[..., byte // b] |= data[..., byte].astype("<u8") << np.uint64(byte % b * 8)
    return np.stack([words[..., i // k] // np.uint64(levels ** (i % k)) % np.uint64(levels) for i in range(n)], -1).astype(int)


def numbers(data: np.ndarray, bits: int, n: int) -> np.ndarray:
    """Return n numbers (..., n) of so many bits each, lowest bit first, without gaps."""
    line = np.unpackbits(data, axis=-1, count=n * bits, bitorder="little").reshape(*data.shape[:-1], n, bits)
    return (line.astype(int) << np.arange(bits)).sum(-1)


def flat_to_heads(x: np.ndarray, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Return (L, H, T, D) of (L, T, C), channel h * D + d."""
    return np.ascontiguousarray(x.reshape(shape[0], shape[2], shape[1], shape[3]).transpose(0, 2, 1, 3))


def e4m3(codes: np.ndarray) -> np.ndarray:
    """Return the values of float8 E4M3."""
    values = []
    for code in range(256):
        exponent, fraction = code >> 3 & 15, code & 7
        value = math.nan if code & 127 == 127 else fraction * 2.0**-9 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7)
        values.append(-value if code & 128 else value)
    return np.array(values, "<f4")[codes]


WORDS = {3: (5, 1), 4: (4, 1), 8: (8, 3), 16: (2, 1), 32: (8, 5), 64: (4, 3)}


def words_nbytes(n: int, levels: int) -> int:
    """Return the bytes of n codes: whole words, and of the last one those that hold bits of codes."""
    k, b = WORDS[levels]
    return n // k * b - (-(n % k) * b // k)
