"""What a stored chunk says about itself; read from untrusted bytes, so every field is checked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvstore.core.errors import CapacityError, FormatError, KVError
from kvstore.core.key import Kind
from kvstore.core.stages import PipelineSpec, StageSpec

ITEM_NBYTES = {"uint8": 1, "int8": 1, "float16": 2, "bfloat16": 2, "float32": 4, "int32": 4, "int64": 8}
MAX_FIELD_NBYTES = 1 << 34
MAX_DECODED_NBYTES = 1 << 30
"""What a reader decodes where nobody says otherwise: as much as a store takes as one blob, by default."""
_MAX_PARTS = 1024
_MAX_FIELDS = 64
_PACKING = re.compile("[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True)
class FieldSpec:
    """One array of a part: name, element type, shape, how its bytes are packed, and where they lie within the part."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    packing: str = "raw"
    offset: int = 0
    nbytes: int = 0

    @property
    def raw_nbytes(self) -> int:
        """Bytes of the array once unpacked."""
        return math.prod(self.shape) * ITEM_NBYTES[self.dtype]

    def to_json(self) -> dict[str, Any]:
        """Return the field as it stands in a manifest."""
        return {**vars(self), "shape": list(self.shape)}

    @classmethod
    def from_json(cls, value: Any) -> FieldSpec:
        """Check and read a field."""
        name, dtype, packing = (_text(value, k) for k in ("name", "dtype", "packing"))
        shape = tuple(_count(s, "shape") for s in _items(value, "shape", 8))
        if dtype not in ITEM_NBYTES or not _PACKING.fullmatch(packing):
            raise FormatError(f"field {name}: type {dtype} packed as {packing} is not known here")
        field = cls(name, dtype, shape, packing, _count(value["offset"], "offset"), _count(value["nbytes"], "nbytes"))
        if field.raw_nbytes > MAX_FIELD_NBYTES or (packing == "raw" and field.nbytes != field.raw_nbytes):
            raise FormatError(f"field {name}: {field.nbytes} B do not hold shape {shape} of {dtype}")
        return field


@dataclass(frozen=True)
class PartSpec:
    """One layer group of a chunk: its geometry, its fields, and the place and digest of its bytes within the blob."""

    group: int
    layers: tuple[int, ...]
    kv_heads: int
    k_dim: int
    v_dim: int
    fields: tuple[FieldSpec, ...]
    offset: int = 0
    nbytes: int = 0
    xxh3: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the part as it stands in a manifest."""
        return {**vars(self), "layers": list(self.layers), "fields": [f.to_json() for f in self.fields]}

    @classmethod
    def from_json(cls, value: Any) -> PartSpec:
        """Check and read a part: known keys, aligned fields in order, a length that ends with the last field."""
        numbers = {k: _count(value[k], k) for k in ("group", "kv_heads", "k_dim", "v_dim", "offset", "nbytes")}
        layers = tuple(_count(n, "layers") for n in _items(value, "layers", _MAX_PARTS))
        fields = tuple(FieldSpec.from_json(f) for f in _items(value, "fields", _MAX_FIELDS))
        end = 0
        for field in fields:
            if field.offset != -(-end // 64) * 64:
                raise FormatError(f"field {field.name} begins at {field.offset}, not at the next multiple of 64 behind {end}")
            end = field.offset + field.nbytes
        if end != numbers["nbytes"] or len({f.name for f in fields}) != len(fields):
            raise FormatError(f"part {numbers['group']}: fields end at {end} B of {numbers['nbytes']} B, or share a name")
        if not layers or min(numbers["kv_heads"], numbers["k_dim"], numbers["v_dim"]) < 1:
            raise FormatError(f"part {numbers['group']} has no layers, no heads or a head dimension of 0")
        return cls(layers=layers, fields=fields, xxh3=_hex(value, "xxh3", 16).hex(), **numbers)


@dataclass(frozen=True)
class Manifest:
    """Identity, codec and parts of one chunk.

    Parameters
    ----------
    namespace, content : bytes
        Digest of the model identity; content key of the tokens.
    kind : Kind
        How the tokens were read.
    parent : bytes
        Content key of the chunk read before this one; empty for none.
    n_tokens : int
        T.
    dtype : str
        Type in which the model computed K and V, and into which they are decoded.
    codec : PipelineSpec
        What was done to them; its fingerprint is the chunk's variant.
    parts : tuple of PartSpec
        One per layer group, in the order of the layout.
    """

    namespace: bytes
    content: bytes
    kind: Kind
    parent: bytes
    n_tokens: int
    dtype: str
    codec: PipelineSpec
    parts: tuple[PartSpec, ...]

    @property
    def decoded_nbytes(self) -> int:
        """Bytes of K and V in the dtype, as the geometry claims."""
        n_values = sum(len(part.layers) * part.kv_heads * (part.k_dim + part.v_dim) for part in self.parts) * self.n_tokens
        return n_values * ITEM_NBYTES[self.dtype]

    def check_decoded(self, max_decoded_nbytes: int) -> None:
        """Raise CapacityError where decoding would take more than `max_decoded_nbytes` for K and V, or for what packed fields hold.

        A packed field of a few bytes may claim any size that the geometry claims, too: both are the writer's word. With this, decoding
        takes memory of a small multiple of `max_decoded_nbytes`, and of the bytes that were fetched.
        """
        unpacked = sum(field.raw_nbytes for part in self.parts for field in part.fields if field.packing != "raw")
        if max(self.decoded_nbytes, unpacked) > max_decoded_nbytes:
            raise CapacityError(
                f"the chunk claims {self.decoded_nbytes} B of K and V, and {unpacked} B in packed fields; "
                f"at most {max_decoded_nbytes} B are decoded here: raise max_decoded_nbytes"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as it is written."""
        return {
            "namespace": self.namespace.hex(),
            "content": self.content.hex(),
            "kind": self.kind.name.lower(),
            "parent": self.parent.hex(),
            "n_tokens": self.n_tokens,
            "dtype": self.dtype,
            "rope": "pre",
            "codec": [s.to_json() for s in self.codec.stages],
            "artifact": self.codec.artifact,
            "parts": [p.to_json() for p in self.parts],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Manifest:
        """Check and read a manifest from untrusted JSON; anything unexpected raises FormatError."""
        try:
            manifest = _read_manifest(value)
            known = manifest.to_json()
        except KVError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise FormatError(f"the manifest is malformed: {error!r}") from error
        if known != value:
            raise FormatError("the manifest has fields that this version does not know")
        return manifest


def _read_manifest(value: Mapping[str, Any]) -> Manifest:
    """Read a manifest, letting KeyError and TypeError through."""
    parts = tuple(PartSpec.from_json(p) for p in _items(value, "parts", _MAX_PARTS))
    if [p.group for p in parts] != list(range(len(parts))) or not parts:
        raise FormatError("a chunk has one part per layer group, numbered from 0")
    if _count(value["n_tokens"], "n_tokens") < 1:
        raise FormatError("a chunk of 0 tokens")
    if _text(value, "dtype") not in ("float32", "bfloat16", "float16"):
        raise FormatError(f"dtype {value['dtype']} is not a model's type")
    return Manifest(
        namespace=_hex(value, "namespace", 32),
        content=_hex(value, "content", 32),
        kind=Kind[_text(value, "kind").upper()],
        parent=_hex(value, "parent", 32) if value["parent"] else b"",
        n_tokens=value["n_tokens"],
        dtype=value["dtype"],
        codec=PipelineSpec(tuple(StageSpec.from_json(s) for s in _items(value, "codec", 16)), _text(value, "artifact")),
        parts=parts,
    )


def _text(value: Mapping[str, Any], key: str) -> str:
    """Return a short string."""
    text = value[key]
    if not isinstance(text, str) or len(text) > 256:
        raise FormatError(f"{key} must be a string of at most 256 characters")
    return text


def _count(number: Any, name: str) -> int:
    """Return an integer within 0 and 2**48."""
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**48:
        raise FormatError(f"{name} must be an integer of at least 0, got {number!r}")
    return number


def _items(value: Mapping[str, Any], key: str, most: int) -> Sequence[Any]:
    """Return a list of at most `most` items."""
    items = value[key]
    if not isinstance(items, list) or len(items) > most:
        raise FormatError(f"{key} must be a list of at most {most} items")
    return items


def _hex(value: Mapping[str, Any], key: str, nbytes: int) -> bytes:
    """Return the bytes of a lower-case hex string of exactly `nbytes` bytes."""
    text = _text(value, key)
    data = bytes.fromhex(text)
    if len(data) != nbytes or data.hex() != text:
        raise FormatError(f"{key} must be {2 * nbytes} lower-case hex digits")
    return data
