"""The fields of one part, taken in stored order, and what they become: float32 values of a geometry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvclient.reader.artifact import STORED_TYPES
from kvclient.reader.packings import unpack
from kvstore.core.errors import FormatError
from kvstore.core.manifest import FieldSpec, PartSpec
from kvstore.core.stages import StageSpec

Floats = NDArray[np.float32]
Pair = tuple[Floats, Floats]
Shape = tuple[int, ...]
_LARGEST = {"float32": np.finfo(np.float32).max, "bfloat16": np.float32(2.0**128 - 2.0**120), "float16": np.float32(65504)}


class Geometry(NamedTuple):
    """What one stage sees of a part: `n_rows` layers of tensors, and the model layers that are in them."""

    layers: tuple[int, ...]
    n_rows: int
    kv_heads: int
    n_tokens: int
    k_dim: int
    v_dim: int
    dtype: str

    def shape(self, side: str) -> tuple[int, int, int, int]:
        """Return (L, H, T, D) of "k" or "v"."""
        return self.n_rows, self.kv_heads, self.n_tokens, self.k_dim if side == "k" else self.v_dim

    def n_channels(self, side: str) -> int:
        """Return H * D."""
        return self.kv_heads * (self.k_dim if side == "k" else self.v_dim)

    def each_layer(self) -> Iterator[tuple[int, int]]:
        """Yield row and model layer; raises FormatError where a row is all layers."""
        if self.n_rows != len(self.layers):
            raise FormatError(f"the codec has tables of single layers, but takes {len(self.layers)} layers at once")
        return enumerate(self.layers)


class Fields:
    """The fields of a part; each is compared with what the codec stores next before it is unpacked.

    Raises FormatError for bytes that are not as many as the part has.
    """

    def __init__(self, part: PartSpec, data: memoryview, packings: tuple[StageSpec, ...]) -> None:
        if data.nbytes != part.nbytes:
            raise FormatError(f"part {part.group} has {part.nbytes} B, got {data.nbytes} B")
        self._group, self._rest, self._data, self._packings = part.group, list(part.fields), data, packings

    @property
    def next_name(self) -> str:
        """The name of the field that comes next; "" behind the last."""
        return self._rest[0].name if self._rest else ""

    def take(self, name: str, dtype: str, shape: Shape) -> NDArray[Any]:
        """Return the next field as an array of its stored type (bfloat16 as uint16); FormatError unless it is this one."""
        spec = self._rest.pop(0) if self._rest else None
        if spec is None or (spec.name, spec.dtype, spec.shape) != (name, dtype, shape):
            raise FormatError(f"part {self._group} needs a field {name} of {dtype} {shape}, got {spec}")
        stored = self._data[spec.offset : spec.offset + spec.nbytes]
        raw = stored if spec.packing == "raw" else self._unpack(spec, stored)
        return np.frombuffer(raw, STORED_TYPES[dtype]).reshape(shape)

    def floats(self, name: str, dtype: str, shape: Shape) -> Floats:
        """Return the next field, of a float type, as float32."""
        return widen(self.take(name, dtype, shape), dtype)

    def check_all_taken(self) -> None:
        """Raise FormatError if the part has a field that the codec does not store."""
        if self._rest:
            raise FormatError(f"part {self._group} has fields that its codec does not store: {', '.join(f.name for f in self._rest)}")

    def _unpack(self, spec: FieldSpec, stored: memoryview) -> NDArray[np.uint8]:
        """Return the raw bytes of a packed field, never more than its shape says."""
        own = (s for s in self._packings if s.name == spec.packing and dict(s.params).get("fields") in ("", spec.name.rpartition(".")[2]))
        if (stage := next(own, None)) is None:
            raise FormatError(f"field {spec.name} is packed as {spec.packing}, which the codec does not do")
        return unpack(stage.name, dict(stage.params), stored, spec.raw_nbytes)


def with_axis(shape: Shape, axis: int, length: int) -> Shape:
    """Return `shape` with another length along one axis."""
    sizes = list(shape)
    sizes[axis] = length
    return tuple(sizes)


def to_heads(x: Floats, shape: Shape) -> Floats:
    """Return (L, H, T, D) of (L, T, C), whose channel h * D + d is channel d of head h."""
    n_rows, kv_heads, n_tokens, dim = shape
    return np.ascontiguousarray(x.reshape(n_rows, n_tokens, kv_heads, dim).transpose(0, 2, 1, 3))


def numbers(packed: NDArray[np.uint8], bits: int, n: int) -> NDArray[Any]:
    """Return n numbers (..., n) of 1 to 16 bits each from their bytes, lowest bit first, without gaps."""
    bit_of = np.unpackbits(packed, axis=-1, count=n * bits, bitorder="little").reshape(*packed.shape[:-1], n, bits)
    whole = np.packbits(bit_of, axis=-1, bitorder="little")
    return whole[..., 0] if bits <= 8 else whole.view("<u2")[..., 0]


def codes_nbytes(n: int, levels: int) -> int:
    """Return the bytes of n codes of 3 levels, five in a byte, or of a power of two."""
    return -(-n // 5) if levels == 3 else -(-n * (levels.bit_length() - 1) // 8)


def codes(packed: NDArray[np.uint8], levels: int, n: int) -> NDArray[Any]:
    """Return n codes (..., n) of 3 levels, or of a power of two, from their bytes."""
    if levels != 3:
        return numbers(packed, levels.bit_length() - 1, n)
    digits = packed[..., None] // 3 ** np.arange(5, dtype=np.uint8) % 3
    return digits.reshape(*packed.shape[:-1], -1)[..., :n]


def widen(x: NDArray[Any], dtype: str) -> Floats:
    """Return stored values of a float type as float32, exactly."""
    if dtype == "bfloat16":
        words = x.astype(np.uint32)
        words <<= 16
        return words.view(np.float32)
    return x.astype(np.float32, copy=False)


def rounded(x: Floats, dtype: str) -> Floats:
    """Round float32 values to the nearest of `dtype`, ties to even, and keep them as float32."""
    if dtype == "float16":
        return x.astype(np.float16).astype(np.float32)
    if dtype == "bfloat16":
        bits = x.view(np.uint32)
        nearest = (bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000).view(np.float32)
        return np.where(np.isnan(x), x, nearest)  # adding to the bits of a NaN may carry into its sign
    return x


def saturated(x: Floats, dtype: str) -> Floats:
    """Round as `rounded` does; beyond float16's largest magnitude it becomes that."""
    return rounded(np.clip(x, -65504, 65504) if dtype == "float16" else x, dtype)


def limited(x: Floats, dtype: str) -> Floats:
    """Round as `rounded` does; beyond the dtype's largest magnitude it becomes that."""
    return rounded(np.clip(x, -_LARGEST[dtype], _LARGEST[dtype]), dtype)
