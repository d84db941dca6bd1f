"""A codec: stages in order, between the tensors of a passage and the bytes of a stored chunk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce

import torch

from kvstore.codecs import ByteStage, Stage
from kvstore.core.blob import Buffer, build_blob
from kvstore.core.errors import InvalidInputError
from kvstore.core.identity import ModelIdentity
from kvstore.core.key import Kind
from kvstore.core.manifest import ITEM_NBYTES, FieldSpec, Manifest, PartSpec
from kvstore.core.stages import PipelineSpec, Traits
from kvworker.chunk import ChunkSpec, KVChunk, PassageKV
from kvworker.codec.artifacts import Artifacts
from kvworker.codec.stages import Calibrated, Crossing, Fields, Layout, Quantizer, Transform
from kvworker.codec.tensor_bytes import bytes_of

NEED = "need"
"""The field of a first part, behind those of the codec, that holds `KVChunk.need`."""
LOSSY_LIMIT = 2.0**126
"""Magnitude that a lossy codec refuses: differences and rounded-up products of smaller values are finite in float32."""
_ORDER: tuple[tuple[type, ...], ...] = ((Transform, Crossing), (Quantizer,), (ByteStage,))


@dataclass(frozen=True)
class Pipeline:
    """Transforms, one quantizer, then byte stages; another order, a stage twice or two crossings raise InvalidInputError."""

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        kinds = [next((n for n, kind in enumerate(_ORDER) if isinstance(stage, kind)), -1) for stage in self.stages]
        names = [stage.name for stage in self.stages]
        if kinds != sorted(kinds) or kinds.count(1) != 1 or -1 in kinds:
            raise InvalidInputError(f"a codec is transforms, one quantizer, then byte stages; got {' -> '.join(names) or 'no stage'}")
        before = names[: kinds.index(1)]
        if len(set(before)) != len(before) or sum(isinstance(stage, Crossing) for stage in self.stages) > 1:
            raise InvalidInputError(f"a codec has each transform once and one that crosses layers at most; got {' -> '.join(names)}")

    @cached_property
    def transforms(self) -> tuple[Transform | Crossing, ...]:
        """The stages before the quantizer."""
        return tuple(stage for stage in self.stages if isinstance(stage, Transform | Crossing))

    @cached_property
    def quantizer(self) -> Quantizer:
        """The stage between tensors and fields."""
        return next(stage for stage in self.stages if isinstance(stage, Quantizer))

    @cached_property
    def byte_stages(self) -> tuple[ByteStage, ...]:
        """The stages that pack fields; the first one that names a field packs it."""
        return tuple(stage for stage in self.stages if isinstance(stage, ByteStage))

    @cached_property
    def crossing(self) -> Crossing | None:
        """The transform that mixes layers, if there is one."""
        return next((stage for stage in self.transforms if isinstance(stage, Crossing)), None)

    @cached_property
    def outer(self) -> tuple[Transform, ...]:
        """The transforms before the crossing; none without one."""
        chunkwise = (stage for stage in self.transforms[: self._n_outer] if isinstance(stage, Transform))
        return tuple(chunkwise)

    @cached_property
    def inner(self) -> tuple[Transform, ...]:
        """The transforms behind the crossing; all without one."""
        return tuple(stage for stage in self.transforms[self._n_outer :] if isinstance(stage, Transform))

    @cached_property
    def _n_outer(self) -> int:
        return self.transforms.index(self.crossing) if self.crossing is not None else 0

    @cached_property
    def spec(self) -> PipelineSpec:
        """The names and parameters; `spec.variant()` is the last third of a chunk key."""
        return PipelineSpec(tuple(stage.spec for stage in self.stages))

    @cached_property
    def traits(self) -> Traits:
        """What the codec as a whole promises."""
        return reduce(Traits.then, (_traits_of(stage) for stage in self.stages))

    def bound(self, artifacts: Artifacts) -> Pipeline:
        """Return the codec with the tables of its calibrated stages; raises what `Artifacts.find` raises."""
        return Pipeline(tuple(artifacts.bind(stage) for stage in self.stages)) if self.traits.needs_artifact else self

    def layout(self, specs: Sequence[ChunkSpec], index: int) -> Layout:
        """Return the fields of part `index` of a passage with these layer groups, in stored order."""
        spec, layout = descend(self.outer, specs[index])
        if self.crossing is None:
            return layout | self._core_layout(spec)
        crossed = [descend(self.outer, each)[0] for each in specs]
        if index or not spec.n_tokens:
            return layout
        return layout | dict(self.crossing.layout(crossed)) | self._core_layout(self.crossing.inner(crossed))

    def _core_layout(self, spec: ChunkSpec) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return the fields of the inner transforms and the quantizer."""
        spec, layout = descend(self.inner, spec)
        return layout | (dict(self.quantizer.layout(spec)) if spec.n_tokens else {})

    def bits_per_value(self, specs: Sequence[ChunkSpec]) -> float:
        """Return the bits that a value of K and V takes in stored fields, everything counted, before byte stages pack them."""
        fields = [field for index in range(len(specs)) for field in self.layout(specs, index).values()]
        return 8 * sum(math.prod(shape) * ITEM_NBYTES[dtype] for dtype, shape in fields) / sum(spec.n_values for spec in specs)

    def encode(self, passage: PassageKV, identity: ModelIdentity, kind: Kind, content: bytes, parent: bytes | None = None) -> bytearray:
        """Return the whole blob of a passage: one chunk per layer group of the identity's layout.

        Raises InvalidInputError for a passage of zero tokens or of another geometry or dtype than the identity says, and, in a lossy
        codec, for NaN, infinity and magnitudes of 2**126 and more: such a passage can only be stored lossless.
        """
        specs = expected_specs(identity, passage[0].spec.n_tokens if passage else 0)
        if [chunk.spec for chunk in passage] != [spec.shape for spec in specs]:
            raise InvalidInputError(f"the passage is {[chunk.spec for chunk in passage]} but the model's layout is {specs}")
        if not self.traits.is_bit_exact:
            for chunk, spec in zip(passage, specs, strict=True):
                _refuse_extremes(self.spec.label, spec.layers, {"k": chunk.k, "v": chunk.v})
        encoded = [self._pack_part(index, specs, fields, passage[index].need) for index, fields in enumerate(self._fields(passage, specs))]
        groups = zip(encoded, identity.layout.groups, strict=True)
        manifest = Manifest(
            namespace=identity.namespace,
            content=content,
            kind=kind,
            parent=parent or b"",
            n_tokens=specs[0].n_tokens,
            dtype=identity.dtype,
            codec=self.spec,
            parts=tuple(PartSpec(i, g.layers, g.kv_heads, g.k_dim, g.v_dim, tuple(part)) for i, ((part, _), g) in enumerate(groups)),
        )
        return build_blob(manifest, [payload for _, payload in encoded])

    def _fields(self, passage: PassageKV, specs: Sequence[ChunkSpec]) -> list[Fields]:
        """Return the fields of every part."""
        done = [_apply(self.outer, replace(chunk, need=None), spec) for chunk, spec in zip(passage, specs, strict=True)]
        if self.crossing is None:
            return [fields | self._core_fields(chunk, spec) for chunk, spec, fields in done]
        crossed = [spec for _, spec, _ in done]
        parts = [fields for _, _, fields in done]
        if crossed[0].n_tokens:
            chunk, side = self.crossing.apply([chunk for chunk, _, _ in done], crossed)
            parts[0] = parts[0] | side | self._core_fields(chunk, self.crossing.inner(crossed))
        return parts

    def _core_fields(self, chunk: KVChunk, spec: ChunkSpec) -> Fields:
        """Return the fields of the inner transforms and the quantizer."""
        chunk, spec, fields = _apply(self.inner, chunk, spec)
        return fields | (self.quantizer.encode(chunk, spec) if spec.n_tokens else {})

    def _pack_part(
        self, index: int, specs: Sequence[ChunkSpec], fields: Fields, need: torch.Tensor | None
    ) -> tuple[list[FieldSpec], list[Buffer]]:
        """Return the fields of a part, not yet placed, and their bytes."""
        found, payload = [], []
        for name, (dtype, shape) in self.layout(specs, index).items():
            packing, data = self._pack(name, fields[name])
            found.append(FieldSpec(name, dtype, shape, packing))
            payload.append(data)
        if need is not None:
            found.append(FieldSpec(NEED, "float16", tuple(need.shape)))
            payload.append(bytes_of(need))
        return found, payload

    def _pack(self, name: str, field: torch.Tensor) -> tuple[str, Buffer]:
        """Return how a field is packed and its bytes; it stays raw where packing saves nothing."""
        data = bytes_of(field)
        for stage in self.byte_stages:
            if stage.packs(name):
                packed = stage.pack(data)
                return (stage.name, packed) if len(packed) < len(data) else ("raw", data)
        return "raw", data


def descend(stages: Sequence[Transform], spec: ChunkSpec) -> tuple[ChunkSpec, dict[str, tuple[str, tuple[int, ...]]]]:
    """Return the spec behind transforms and the fields that they store; stages are spared a chunk without tokens."""
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    for stage in stages:
        if not spec.n_tokens:
            break
        layout |= stage.layout(spec)
        spec = stage.inner(spec)
    return spec, layout


def _apply(stages: Sequence[Transform], chunk: KVChunk, spec: ChunkSpec) -> tuple[KVChunk, ChunkSpec, Fields]:
    """Return a chunk behind transforms, its spec, and the fields that they store."""
    fields: Fields = {}
    for stage in stages:
        if not spec.n_tokens:
            break
        chunk, side = stage.apply(chunk, spec)
        fields |= side
        spec = stage.inner(spec)
    return chunk, spec, fields


def restore(stages: Sequence[Transform], chunk: KVChunk, fields: Fields, spec: ChunkSpec) -> KVChunk:
    """Return the chunk before transforms, where its spec is `spec`."""
    if not stages or not spec.n_tokens:
        return chunk
    first, *others = stages
    return first.restore(restore(others, chunk, fields, first.inner(spec)), fields, spec)


def expected_specs(identity: ModelIdentity, n_tokens: int) -> list[ChunkSpec]:
    """Return the specs of a passage of this model; zero tokens raise InvalidInputError."""
    if n_tokens < 1:
        raise InvalidInputError("a passage of 0 tokens has no KV to store")
    return [ChunkSpec.of_group(group, n_tokens, identity.dtype) for group in identity.layout.groups]


def _traits_of(stage: Stage) -> Traits:
    """Return the traits of a stage, those that its kind decides included."""
    return replace(
        stage.traits,
        needs_artifact=isinstance(stage, Calibrated),
        is_layer_streamable=stage.traits.is_layer_streamable and not isinstance(stage, Crossing),
    )


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
