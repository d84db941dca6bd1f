"""A codec: stages in order, between the tensors of a passage and the bytes of a stored chunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import torch

from kvstore.codecs import ByteStage, Stage, find_byte_stage
from kvstore.core.blob import Buffer, build_blob
from kvstore.core.discovery import find, known_names
from kvstore.core.errors import FormatError, IdentityError, InvalidInputError, UnsupportedError
from kvstore.core.identity import ModelIdentity
from kvstore.core.key import Kind
from kvstore.core.manifest import FieldSpec, Manifest, PartSpec
from kvstore.core.stages import PipelineSpec, StageSpec
from kvworker.chunk import ChunkSpec, KVChunk, PassageKV
from kvworker.codec.stages import Quantizer
from kvworker.codec.tensor_bytes import bytes_of, tensor_of

QUANTIZERS = "kvworker.methods.quantize"
NEED = "need"
"""The field of a first part, behind those of the codec, that holds `KVChunk.need`."""
LOSSY_LIMIT = 2.0**126
"""Magnitude that a lossy codec refuses: differences and rounded-up products of smaller values are finite in float32."""


@dataclass(frozen=True)
class Pipeline:
    """One quantizer, then any number of byte stages; another order raises InvalidInputError."""

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        kinds = [next((n for n, kind in enumerate((Quantizer, ByteStage)) if isinstance(stage, kind)), -1) for stage in self.stages]
        if kinds != sorted(kinds) or kinds.count(0) != 1 or -1 in kinds:
            names = " -> ".join(stage.name for stage in self.stages)
            raise InvalidInputError(f"a codec is one quantizer, then byte stages; got {names or 'no stage'}")

    @cached_property
    def quantizer(self) -> Quantizer:
        """The stage between tensors and fields."""
        return next(stage for stage in self.stages if isinstance(stage, Quantizer))

    @cached_property
    def byte_stages(self) -> tuple[ByteStage, ...]:
        """The stages that pack fields; the first one that names a field packs it."""
        return tuple(stage for stage in self.stages if isinstance(stage, ByteStage))

    @cached_property
    def spec(self) -> PipelineSpec:
        """The names and parameters; `spec.variant()` is the last third of a chunk key."""
        return PipelineSpec(tuple(stage.spec for stage in self.stages))

    def encode(self, passage: PassageKV, identity: ModelIdentity, kind: Kind, content: bytes, parent: bytes | None = None) -> bytearray:
        """Return the whole blob of a passage: one chunk per layer group of the identity's layout.

        Raises InvalidInputError for a passage of zero tokens or of another geometry or dtype than the identity says, and, in a lossy
        codec, for NaN, infinity and magnitudes of 2**126 and more: such a passage can only be stored lossless.
        """
        specs = expected_specs(identity, passage[0].spec.n_tokens if passage else 0)
        if [chunk.spec for chunk in passage] != specs:
            raise InvalidInputError(f"the passage is {[chunk.spec for chunk in passage]} but the model's layout is {specs}")
        encoded = [self._encode_part(n, chunk, identity) for n, chunk in enumerate(passage)]
        manifest = Manifest(
            namespace=identity.namespace,
            content=content,
            kind=kind,
            parent=parent or b"",
            n_tokens=specs[0].n_tokens,
            dtype=identity.dtype,
            codec=self.spec,
            parts=tuple(part for part, _ in encoded),
        )
        return build_blob(manifest, [payload for _, payload in encoded])

    def _encode_part(self, index: int, chunk: KVChunk, identity: ModelIdentity) -> tuple[PartSpec, list[Buffer]]:
        """Return a part, not yet placed, and the bytes of its fields."""
        group = identity.layout.groups[index]
        if not self.quantizer.is_lossless:
            _refuse_extremes(self.quantizer.name, group.layers, {"k": chunk.k, "v": chunk.v})
        fields = self.quantizer.encode(chunk)
        specs, payload = [], []
        for name, (dtype, shape) in self.quantizer.layout(chunk.spec).items():
            packing, data = self._pack(name, fields[name])
            specs.append(FieldSpec(name, dtype, shape, packing))
            payload.append(data)
        if chunk.need is not None:
            specs.append(FieldSpec(NEED, "float16", tuple(chunk.need.shape)))
            payload.append(bytes_of(chunk.need))
        return PartSpec(index, group.layers, group.kv_heads, group.k_dim, group.v_dim, tuple(specs)), payload

    def _pack(self, name: str, field: torch.Tensor) -> tuple[str, Buffer]:
        """Return how a field is packed and its bytes; it stays raw where packing saves nothing."""
        data = bytes_of(field)
        for stage in self.byte_stages:
            if stage.packs(name):
                packed = stage.pack(data)
                return (stage.name, packed) if len(packed) < len(data) else ("raw", data)
        return "raw", data


def expected_specs(identity: ModelIdentity, n_tokens: int) -> list[ChunkSpec]:
    """Return the specs of a passage of this model; zero tokens raise InvalidInputError."""
    if n_tokens < 1:
        raise InvalidInputError("a passage of 0 tokens has no KV to store")
    return [ChunkSpec.of_group(group, n_tokens, identity.dtype) for group in identity.layout.groups]


def check_geometry(manifest: Manifest, identity: ModelIdentity, n_tokens: int) -> None:
    """Raise IdentityError unless the manifest claims this model and exactly the shapes of `n_tokens` of its tokens.

    Call it before decoding a chunk that others may have written: what it lets pass decodes into memory of a known size.
    """
    groups = [(g.layers, g.kv_heads, g.k_dim, g.v_dim) for g in identity.layout.groups]
    claimed = [(p.layers, p.kv_heads, p.k_dim, p.v_dim) for p in manifest.parts]
    if (manifest.namespace, manifest.n_tokens, manifest.dtype, claimed) != (identity.namespace, n_tokens, identity.dtype, groups):
        raise IdentityError(
            f"the chunk holds {manifest.n_tokens} tokens of {manifest.dtype} {claimed} in namespace {manifest.namespace.hex()[:16]}; "
            f"{n_tokens} tokens of {identity.dtype} {groups} in {identity.namespace.hex()[:16]} were asked for"
        )


def decode_part(manifest: Manifest, index: int, data: Buffer, device: torch.device | str = "cpu") -> KVChunk:
    """Return the chunk of layer group `index` from the verified bytes of its part; needs no other part.

    A raw chunk on the CPU aliases `data` and keeps it alive: memory that is reused for other bytes must not be before the chunk is gone.
    Raises UnsupportedError for a codec that is not known here and FormatError for fields that do not fit codec and geometry.
    """
    part = _part_of(manifest, index)
    view = memoryview(data).cast("B")
    if view.nbytes != part.nbytes:
        raise FormatError(f"part {index} has {part.nbytes} B, got {view.nbytes} B")
    pipeline = pipeline_of(manifest.codec)
    spec = ChunkSpec(len(part.layers), part.kv_heads, manifest.n_tokens, part.k_dim, part.v_dim, manifest.dtype)
    _check_fields(part, pipeline, spec)
    fields = {f.name: _load(f, view[f.offset : f.offset + f.nbytes]) for f in part.fields}
    if device != "cpu":  # even a move to where it is lets go of the interpreter's lock, and loaders take it for milliseconds
        fields = {name: field.to(device) for name, field in fields.items()}
    need = fields.pop(NEED, None)
    return KVChunk(*pipeline.quantizer.decode(fields, spec), need)


def pipeline_of(codec: PipelineSpec) -> Pipeline:
    """Return the pipeline that a manifest names, or raise UnsupportedError."""
    return _pipeline_of(codec, tuple(type(value) for stage in codec.stages for _, value in stage.params))


@lru_cache(maxsize=64)
def _pipeline_of(codec: PipelineSpec, types: Sequence[type]) -> Pipeline:
    """Build a pipeline; `types` keeps 1, 1.0 and True apart, which are equal as cache keys."""
    try:
        pipeline = Pipeline(tuple(_stage_of(stage) for stage in codec.stages))
    except InvalidInputError as error:
        raise UnsupportedError(f"codec {codec.label} is not known here: {error}") from error
    if pipeline.spec != codec:
        raise UnsupportedError(f"codec {codec.label}: this version needs {pipeline.spec}, the chunk has {codec}")
    return pipeline


def _stage_of(spec: StageSpec) -> Stage:
    """Return the stage that a spec names; UnsupportedError lists the known ones."""
    return find_stage_class(spec.name).build(dict(spec.params))


@cache
def find_stage_class(name: str) -> type[Stage]:
    """Return a stage's class by its name: a quantizer or a byte stage; UnsupportedError lists the known byte stages."""
    if name in known_names(QUANTIZERS):
        found: type[Stage] = find(QUANTIZERS, name)
        return found
    return find_byte_stage(name)


def _part_of(manifest: Manifest, index: int) -> PartSpec:
    """Return part `index`, or raise InvalidInputError."""
    if not 0 <= index < len(manifest.parts):
        raise InvalidInputError(f"part {index} was asked for; the chunk has parts 0 to {len(manifest.parts) - 1}")
    return manifest.parts[index]


def _check_fields(part: PartSpec, pipeline: Pipeline, spec: ChunkSpec) -> None:
    """Raise FormatError unless the part has the fields that the codec stores for this geometry, packed as the codec may pack them.

    The first part may have the need of every row behind them.
    """
    if min(spec.n_layers, spec.kv_heads, spec.n_tokens, spec.k_dim, spec.v_dim) < 1:
        raise FormatError(f"part {part.group} has a dimension of 0: {spec}")
    found = {f.name: (f.dtype, f.shape) for f in part.fields}
    layout = dict(pipeline.quantizer.layout(spec))
    if part.group == 0 and NEED in found:
        layout[NEED] = ("float16", (spec.n_tokens,))
    if found != layout or list(found) != list(layout):
        raise FormatError(f"part {part.group} has fields {found}, but {pipeline.quantizer.name} stores {layout}")
    for field in part.fields:
        if field.packing != "raw" and not any(s.name == field.packing and s.packs(field.name) for s in pipeline.byte_stages):
            raise FormatError(f"field {field.name} is packed as {field.packing}, which the codec {pipeline.spec.label} does not do")


def _load(field: FieldSpec, data: memoryview) -> torch.Tensor:
    """Return the field's tensor; a view of `data` when the field is not packed."""
    raw = data if field.packing == "raw" else find_byte_stage(field.packing).unpack(data, field.raw_nbytes)
    return tensor_of(raw, field.dtype, field.shape)


def _refuse_extremes(codec: str, layers: Sequence[int], sides: Mapping[str, torch.Tensor]) -> None:
    """Raise InvalidInputError if k or v hold NaN, infinity or what may overflow on the way, naming the first such layer."""
    for side, x in sides.items():
        if x.abs().amax() < LOSSY_LIMIT:  # false for NaN
            continue
        counts = (~(x.abs() < LOSSY_LIMIT)).flatten(1).sum(1).tolist()
        n, layer = next((n, layer) for n, layer in zip(counts, layers, strict=True) if n)
        raise InvalidInputError(
            f"{codec}: {side} of layer {layer} holds {n} values that are NaN or beyond 2**126; store this passage lossless"
        )


def declared_quality(codec: PipelineSpec) -> str:
    """Return what a codec loses: "lossless", or "unmeasured" until a measurement is declared."""
    return "lossless" if pipeline_of(codec).quantizer.is_lossless else "unmeasured"
