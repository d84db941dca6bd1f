"""Decode the parts of stored chunks to numpy, for engines that have no torch.

Written from `proto/FORMAT.md` and independent of the worker's codecs: the tests hold the two against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kvclient.numpy_packings import PACKINGS, unpack
from kvclient.numpy_rotation import LEVELS, LIMIT, blocks_of, rotate, signs_of
from kvstore.core.blob import Buffer
from kvstore.core.errors import FormatError, InvalidInputError, UnsupportedError
from kvstore.core.manifest import FieldSpec, Manifest, PartSpec
from kvstore.core.stages import Param, StageSpec

Floats = NDArray[np.float32]
Shape = tuple[int, ...]

_STORED_TYPES = {"uint8": "u1", "int8": "i1", "float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "int32": "<i4", "int64": "<i8"}
_ITEM_NBYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def decode_part(manifest: Manifest, index: int, data: Buffer) -> tuple[Floats, Floats]:
    """Return k before RoPE (L, H, T, D) and v (L, H, T, Dv) of layer group `index` from the verified bytes of its part.

    The values are exactly those that a worker decodes, rounded to the model's dtype and widened to float32. The arrays may be read-only
    views of `data`. Raises UnsupportedError for a codec that is not known here, FormatError for fields that do not fit codec and
    geometry, and MissingExtraError where a field is packed and the package that unpacks it is not installed.
    """
    if not 0 <= index < len(manifest.parts):
        raise InvalidInputError(f"part {index} was asked for; the chunk has parts 0 to {len(manifest.parts) - 1}")
    part = manifest.parts[index]
    if not part.layers or min(part.kv_heads, part.k_dim, part.v_dim, manifest.n_tokens) < 1:
        raise FormatError(f"part {index} has a dimension of 0")
    codec = _find_codec(manifest)
    fields = _Fields(part, memoryview(data).cast("B"), manifest.codec.stages)
    rows = (len(part.layers), part.kv_heads, manifest.n_tokens)
    with np.errstate(all="ignore"):  # parameters that overflow decode to infinity, as in torch; they are not worth a warning
        k = codec.decode(fields, "k", (*rows, part.k_dim), manifest.dtype)
        v = codec.decode(fields, "v", (*rows, part.v_dim), manifest.dtype)
    if index == 0 and any(f.name == "need" for f in part.fields):
        fields.take("need", "float16", (manifest.n_tokens,))
    fields.check_all_taken()
    return k, v


@dataclass(frozen=True)
class _Codec:
    """A quantizer with its parameters, behind as many sinks."""

    n_sinks: int
    decode_side: SideDecoder
    params: dict[str, Param]

    def decode(self, fields: _Fields, side: str, shape: Shape, dtype: str) -> Floats:
        """Return K or V."""
        if not self.n_sinks:
            return self.decode_side(fields, side, shape, dtype, self.params)
        n_first = min(self.n_sinks, shape[2])
        first = fields.floats(f"sinks.{side}", dtype, _with_axis(shape, 2, n_first))
        if n_first == shape[2]:
            return first
        rest = self.decode_side(fields, side, _with_axis(shape, 2, shape[2] - n_first), dtype, self.params)
        return np.concatenate((first, rest), 2)


def _find_codec(manifest: Manifest) -> _Codec:
    """Return what decodes the chunk's codec."""
    label, stages = manifest.codec.label, list(manifest.codec.stages)
    n_sinks = _known_params(label, stages.pop(0), {"n": range(1, 1025)})["n"] if stages and stages[0].name == "sinks" else 0
    if not stages or stages[0].name not in _DECODERS or any(s.name not in PACKINGS for s in stages[1:]) or manifest.codec.artifact:
        known = f"known: {', '.join(_DECODERS)}, each alone, behind sinks, or with {', '.join(PACKINGS)}"
        raise UnsupportedError(f"codec {label!r} is not known here; {known}")
    decode_side, expected = _DECODERS[stages[0].name]
    return _Codec(int(n_sinks), decode_side, _known_params(label, stages[0], expected))


def _known_params(label: str, stage: StageSpec, expected: Mapping[str, Sequence[int]]) -> dict[str, Param]:
    """Return a stage's parameters, which have to be among the expected ones."""
    params = dict(stage.params)
    if set(params) != set(expected) or any(type(v) is not int or v not in expected[k] for k, v in params.items()):
        raise UnsupportedError(f"codec {label!r} with parameters {params} is not known here; known: {dict(expected)}")
    return params


@dataclass
class _Fields:
    """The fields of one part, taken one by one; each is compared with what the codec stores before it is unpacked."""

    part: PartSpec
    data: memoryview
    packings: tuple[StageSpec, ...]
    taken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.data.nbytes != self.part.nbytes:
            raise FormatError(f"part {self.part.group} has {self.part.nbytes} B, got {self.data.nbytes} B")

    def take(self, name: str, dtype: str, shape: Shape) -> NDArray[Any]:
        """Return the field as an array of its stored type (bfloat16 as uint16)."""
        spec = next((f for f in self.part.fields if f.name == name), None)
        if spec is None or (spec.dtype, spec.shape) != (dtype, shape):
            raise FormatError(f"part {self.part.group} needs a field {name} of {dtype} {shape}, got {spec}")
        self.taken.append(name)
        stored = self.data[spec.offset : spec.offset + spec.nbytes]
        raw = stored if spec.packing == "raw" else self._unpack(spec, stored)
        return np.frombuffer(raw, _STORED_TYPES[dtype]).reshape(shape)

    def floats(self, name: str, dtype: str, shape: Shape) -> Floats:
        """Return a field of a float type as float32."""
        return _widen(self.take(name, dtype, shape), dtype)

    def check_all_taken(self) -> None:
        """Raise FormatError if the part has a field that the codec does not store."""
        if spare := sorted({f.name for f in self.part.fields} - set(self.taken)):
            raise FormatError(f"part {self.part.group} has fields that its codec does not store: {', '.join(spare)}")

    def _unpack(self, spec: FieldSpec, stored: memoryview) -> NDArray[np.uint8]:
        """Return the raw bytes of a packed field, never more than its shape says."""
        own = (s for s in self.packings if s.name == spec.packing and dict(s.params).get("fields") in ("", spec.name.rpartition(".")[2]))
        if (stage := next(own, None)) is None:
            raise FormatError(f"field {spec.name} is packed as {spec.packing}, which the codec does not do")
        return unpack(stage.name, dict(stage.params), stored, spec.raw_nbytes)


def _decode_raw(fields: _Fields, side: str, shape: Shape, dtype: str, params: dict[str, Param]) -> Floats:
    """Return the values as they stand."""
    return fields.floats(f"{side}.values", dtype, shape)


def _decode_exponent_split(fields: _Fields, side: str, shape: Shape, dtype: str, params: dict[str, Param]) -> Floats:
    """Put the bits of each value together again."""
    exponent = fields.take(f"{side}.exponent", "uint8", shape).astype(np.uint32)
    rest = fields.take(f"{side}.rest", "uint8", (_ITEM_NBYTES[dtype] - 1, *shape)).astype(np.uint32)
    top = (rest[0] & 0x80) << 8 | exponent << 7 | rest[0] & 0x7F
    if dtype == "float32":
        whole: NDArray[np.uint32] = top << 16 | rest[1] << 8 | rest[2]
        return whole.view(np.float32)
    return _widen(top.astype("<u2").view(_STORED_TYPES[dtype]), dtype)


def _decode_int8(fields: _Fields, side: str, shape: Shape, dtype: str, params: dict[str, Param]) -> Floats:
    """Return code times scale."""
    codes = fields.take(f"{side}.codes", "int8", shape).astype(np.float32)
    return _round_to(codes * fields.floats(f"{side}.scale", "float32", (*shape[:-1], 1)), dtype)


def _decode_fp8(fields: _Fields, side: str, shape: Shape, dtype: str, params: dict[str, Param]) -> Floats:
    """Return float8 value times scale."""
    values = _E4M3[fields.take(f"{side}.codes", "uint8", shape)]
    return _saturate(values * fields.floats(f"{side}.scale", "float32", shape[:2])[..., None, None], dtype)


def _e4m3() -> Floats:
    """Return the value of each of the 256 codes of float8 E4M3."""
    code = np.arange(128)
    exponent, fraction = code >> 3, code & 7
    magnitude = np.where(exponent == 0, fraction * 2.0**-9, (8 + fraction) * 2.0 ** (exponent - 10))
    magnitude[127] = np.nan
    return np.concatenate((magnitude, -magnitude)).astype(np.float32)


_E4M3 = _e4m3()
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def _decode_nvfp4(fields: _Fields, side: str, shape: Shape, dtype: str, params: dict[str, Param]) -> Floats:
    """Return float4 value times the float8 step of its 16 channels."""
    codes = fields.take(f"{side}.codes", "uint8", _with_axis(shape, -1, -(-shape[-1] // 2)))
    steps = _E4M3[fields.take(f"{side}.steps", "uint8", _with_axis(shape, -1, -(-shape[-1] // 16)))]
    return _decode_fp4(codes, steps * fields.floats(f"{side}.scale", "float32", shape[:2])[..., None, None], 16, shape, dtype)


def _decode_mxfp4(fields: _Fields, side: str, shape: Shape, dtype: str, params: dict[str, Param]) -> Floats:
    """Return float4 value times the power of two of its 32 channels."""
    codes = fields.take(f"{side}.codes", "uint8", _with_axis(shape, -1, -(-shape[-1] // 2)))
    exponents = fields.take(f"{side}.steps", "uint8", _with_axis(shape, -1, -(-shape[-1] // 32))).astype(np.uint32)
    return _decode_fp4(codes, (exponents << 23).view(np.float32), 32, shape, dtype)


def _decode_fp4(codes: NDArray[np.uint8], steps: Floats, block: int, shape: Shape, dtype: str) -> Floats:
    """Return float4 values times the steps of their blocks of channels."""
    values = _E2M1[_unpack_codes(codes, 4, shape[-1])]
    return _saturate(values * _spread(steps, block, -1, shape[-1]), dtype)


def _decode_kivi(fields: _Fields, side: str, shape: Shape, dtype: str, params: dict[str, Param]) -> Floats:
    """Return code times scale plus zero; keys are grouped along tokens, values along channels."""
    bits, group = int(params["bits"]), int(params["group"])
    axis: Literal[-2, -1] = -2 if side == "k" else -1
    length = shape[axis]
    packed = fields.take(f"{side}.codes", "uint8", _with_axis(shape, axis, -(-length * bits // 8)))
    per_group = _with_axis(shape, axis, -(-length // group))
    scale = _spread(fields.floats(f"{side}.scale", dtype, per_group), group, axis, length)
    zero = _spread(fields.floats(f"{side}.zero", dtype, per_group), group, axis, length)
    codes = _unpack_codes(np.moveaxis(packed, axis, -1), bits, length)
    return _round_to(np.moveaxis(codes, -1, axis).astype(np.float32) * scale + zero, dtype)


def _decode_hadamard(fields: _Fields, side: str, shape: Shape, dtype: str, params: dict[str, Param]) -> Floats:
    """Return code times scale plus zero of every block, turned back."""
    bits = int(params["bits"])
    blocks = blocks_of(shape[-1], bits)
    packed = fields.take(f"{side}.codes", "uint8", _with_axis(shape, -1, blocks[-1][1].stop))
    scale, zero = (fields.floats(f"{side}.{name}", dtype, _with_axis(shape, -1, len(blocks))) for name in ("scale", "zero"))
    out = np.empty(shape, np.float32)
    for n, (own, place) in enumerate(blocks):
        codes = _unpack_codes(packed[..., place], bits, own.stop - own.start).astype(np.float32)
        out[..., own] = rotate(codes * scale[..., n : n + 1] + zero[..., n : n + 1])
    return _saturate(out, dtype)


def _decode_turboquant(fields: _Fields, side: str, shape: Shape, dtype: str, params: dict[str, Param]) -> Floats:
    """Return levels of every block turned back, with the channels' signs, times its norm."""
    bits = int(params[f"{side}_bits"])
    blocks = blocks_of(shape[-1], bits)
    packed = fields.take(f"{side}.codes", "uint8", _with_axis(shape, -1, blocks[-1][1].stop))
    norm = fields.floats(f"{side}.norm", dtype, _with_axis(shape, -1, len(blocks)))
    out, signs = np.empty(shape, np.float32), signs_of(shape[-1])
    for n, (own, place) in enumerate(blocks):
        size = own.stop - own.start
        y = rotate(LEVELS[bits][_unpack_codes(packed[..., place], bits, size)]) * signs[own]
        out[..., own] = np.clip(y * (norm[..., n : n + 1] / np.float32(size**0.5)), -LIMIT, LIMIT)
    return _saturate(out, dtype)


def _unpack_codes(packed: NDArray[np.uint8], bits: int, n_codes: int) -> NDArray[np.uint8]:
    """Return codes (..., N) of 1 to 4 bits from their bytes: 8 codes of 3 bits in three bytes, else 8 / bits codes in one."""
    bit_of = np.unpackbits(packed, axis=-1, count=n_codes * bits, bitorder="little").reshape(*packed.shape[:-1], n_codes, bits)
    return np.packbits(bit_of, axis=-1, bitorder="little")[..., 0]


def _with_axis(shape: Shape, axis: int, length: int) -> Shape:
    """Return `shape` with another length along one axis."""
    sizes = list(shape)
    sizes[axis] = length
    return tuple(sizes)


def _spread(parameters: Floats, group: int, axis: int, length: int) -> Floats:
    """Repeat each group's parameter for the positions of its group."""
    return np.repeat(parameters, group, axis).take(range(length), axis)


def _widen(x: NDArray[Any], dtype: str) -> Floats:
    """Return stored values of a float type as float32, exactly."""
    if dtype == "bfloat16":
        words = x.astype(np.uint32)
        words <<= 16
        return words.view(np.float32)
    return x.astype(np.float32, copy=False)


def _round_to(x: Floats, dtype: str) -> Floats:
    """Round float32 values to the nearest of `dtype`, ties to even, and keep them as float32."""
    if dtype == "float16":
        return x.astype(np.float16).astype(np.float32)
    if dtype == "bfloat16":
        bits = x.view(np.uint32)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000).view(np.float32)
        return np.where(np.isnan(x), x, rounded)  # adding to the bits of a NaN may carry into its sign
    return x


def _saturate(x: Floats, dtype: str) -> Floats:
    """Round as `_round_to` does; beyond float16's largest magnitude it becomes that."""
    return _round_to(np.clip(x, -65504, 65504) if dtype == "float16" else x, dtype)


SideDecoder = Callable[[_Fields, str, Shape, str, dict[str, Param]], Floats]

_DECODERS: dict[str, tuple[SideDecoder, Mapping[str, Sequence[int]]]] = {
    "raw": (_decode_raw, {}),
    "exponent_split": (_decode_exponent_split, {}),
    "int8": (_decode_int8, {}),
    "fp8": (_decode_fp8, {}),
    "nvfp4": (_decode_nvfp4, {}),
    "mxfp4": (_decode_mxfp4, {}),
    "kivi": (_decode_kivi, {"bits": (2, 3, 4), "group": (8, 16, 32, 64, 128, 256)}),
    "hadamard": (_decode_hadamard, {"bits": (2, 3, 4)}),
    "turboquant": (_decode_turboquant, {"k_bits": (1, 2, 3, 4), "v_bits": (1, 2, 3, 4)}),
}
