"""Stored bytes to tensors: part by part as they arrive, from writers that nobody has to trust."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from kvkernels.backend import fuses
from kvstore.core.blob import Buffer
from kvstore.core.errors import FormatError, IdentityError, InvalidInputError, UnsupportedError
from kvstore.core.identity import ModelIdentity
from kvstore.core.key import Kind
from kvstore.core.manifest import MAX_DECODED_NBYTES, FieldSpec, Manifest, PartSpec
from kvworker.chunk import DTYPES, ChunkSpec, KVChunk, PassageKV
from kvworker.codec.coded import CodedChunk
from kvworker.codec.pipeline import NEED, Pipeline, descend, restore
from kvworker.codec.registry import pipeline_of
from kvworker.codec.stages import Fields, Placing, PlacingTransform
from kvworker.codec.tensor_bytes import tensor_of, unguarded


class ChunkDecoder:
    """Decodes the parts of one chunk; needs none of those behind the one that it is given.

    Where a codec mixes layers, everything but the fields of its outer transforms is in part 0: that part comes first, and what it decodes
    to is kept. Any other codec decodes its parts in any order.

    Raises UnsupportedError for a codec that is not known here or not the one given, FormatError for a manifest that holds no KV, and
    CapacityError for one that claims too much.

    Parameters
    ----------
    pipeline : Pipeline or None
        The manifest's codec where it has calibrated stages: bound to their tables.
    max_decoded_nbytes : int
        What K and V of the chunk may take in its dtype; see `Manifest.check_decoded`.
    """

    def __init__(
        self,
        manifest: Manifest,
        pipeline: Pipeline | None = None,
        device: torch.device | str = "cpu",
        max_decoded_nbytes: int = MAX_DECODED_NBYTES,
    ) -> None:
        if manifest.kind is Kind.ARTIFACT:
            raise FormatError("the blob is an artifact and holds no KV")
        manifest.check_decoded(max_decoded_nbytes)
        self._manifest, self._device = manifest, device
        self._pipeline = pipeline or pipeline_of(manifest.codec)
        if self._pipeline.spec != manifest.codec:
            raise UnsupportedError(f"the chunk is coded as {manifest.codec}, not as {self._pipeline.spec}")
        self._specs = [_spec_of(part, manifest) for part in manifest.parts]
        self._crossed: list[KVChunk] = []

    def part(self, index: int, data: Buffer) -> KVChunk:
        """Return the chunk of layer group `index` from the verified bytes of its part.

        A raw chunk on the CPU aliases `data` and keeps it alive: memory that is reused for other bytes must not be before the chunk is
        gone. Raises FormatError for fields that do not fit codec and geometry.
        """
        fields, need = self._fields(index, data)
        with self._telling_misfits(index):
            chunk = self._decode(index, fields)
        return chunk if need is None else KVChunk(chunk.k, chunk.v, need)

    def part_to_place(self, index: int, data: Buffer) -> KVChunk | CodedChunk:
        """Return the chunk of layer group `index` as `part` does; still coded where a GPU decodes it as it is written into a cache."""
        quantizer, transforms = self._pipeline.quantizer, self._pipeline.transforms
        outer = tuple(stage for stage in transforms if isinstance(stage, PlacingTransform))
        if len(outer) != len(transforms) or not isinstance(quantizer, Placing) or not quantizer.is_placed or not fuses(self._device):
            return self.part(index, data)
        (fields, need), spec = self._fields(index, data), self._specs[index]
        with self._telling_misfits(index):
            return CodedChunk(fields, spec, outer, quantizer, lambda: self._decode_core(fields, spec), need)

    @contextmanager
    def _telling_misfits(self, index: int) -> Iterator[None]:
        """Raise FormatError for what kernels and stages say of tensors that do not fit each other, as tables and geometry of two models."""
        try:
            yield
        except ValueError as error:
            raise FormatError(f"part {index} does not decode as {self._pipeline.spec.label}: {error}") from error

    def _fields(self, index: int, data: Buffer) -> tuple[Fields, torch.Tensor | None]:
        """Return the codec's fields of a part on the device, unpacked, and the need of its rows if it says so."""
        part = _part_of(self._manifest, index)
        view = memoryview(data).cast("B")
        if view.nbytes != part.nbytes:
            raise FormatError(f"part {index} has {part.nbytes} B, got {view.nbytes} B")
        _check_fields(part, self._pipeline, self._specs)
        whole = unguarded(view)
        fields = {f.name: _load(f, whole, self._pipeline) for f in part.fields}
        if self._device != "cpu":  # even a move to where it is lets go of the interpreter's lock, and loaders take it for milliseconds
            fields = {name: field.to(self._device) for name, field in fields.items()}
        need = fields.pop(NEED, None)
        return fields, need

    def _decode(self, index: int, fields: Fields) -> KVChunk:
        """Return the chunk of one layer group."""
        if self._pipeline.crossing is None:
            return self._decode_core(fields, self._specs[index])
        if index == 0:
            self._crossed = self._decode_crossed(fields)
        elif not self._crossed:
            raise InvalidInputError(f"part {index} was given before part 0, which holds all layers of codec {self._pipeline.spec.label}")
        return restore(self._pipeline.outer, self._crossed[index], fields, self._specs[index])

    def _decode_crossed(self, fields: Fields) -> list[KVChunk]:
        """Return what the crossing was given of every layer group."""
        crossing = self._pipeline.crossing
        specs = [descend(self._pipeline.outer, spec)[0] for spec in self._specs]
        if crossing is None or not specs[0].n_tokens:
            return [_empty(spec, self._device) for spec in specs]
        return crossing.restore(self._decode_core(fields, crossing.inner(specs)), fields, specs)

    def _decode_core(self, fields: Fields, spec: ChunkSpec) -> KVChunk:
        """Return the chunk that the inner transforms were given."""
        pipeline = self._pipeline
        last, _ = descend(pipeline.inner, spec)
        chunk = KVChunk(*pipeline.quantizer.decode(fields, last)) if last.n_tokens else _empty(last, self._device)
        return restore(pipeline.inner, chunk, fields, spec)


def decode_chunk(
    manifest: Manifest, parts: Iterable[Buffer], pipeline: Pipeline | None = None, device: torch.device | str = "cpu"
) -> PassageKV:
    """Return a whole passage from the verified bytes of its parts; see `ChunkDecoder`."""
    decoder = ChunkDecoder(manifest, pipeline, device)
    return tuple(decoder.part(index, data) for index, data in enumerate(parts))


def decode_part(
    manifest: Manifest, index: int, data: Buffer, device: torch.device | str = "cpu", pipeline: Pipeline | None = None
) -> KVChunk:
    """Return the chunk of one layer group by itself; a codec that mixes layers raises InvalidInputError for every part but the first."""
    _part_of(manifest, index)
    return ChunkDecoder(manifest, pipeline, device).part(index, data)


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


def _part_of(manifest: Manifest, index: int) -> PartSpec:
    """Return part `index`, or raise InvalidInputError."""
    if not 0 <= index < len(manifest.parts):
        raise InvalidInputError(f"part {index} was asked for; the chunk has parts 0 to {len(manifest.parts) - 1}")
    return manifest.parts[index]


def _spec_of(part: PartSpec, manifest: Manifest) -> ChunkSpec:
    """Return the geometry that a part claims."""
    spec = ChunkSpec(len(part.layers), part.kv_heads, manifest.n_tokens, part.k_dim, part.v_dim, manifest.dtype, part.layers)
    if min(spec.n_layers, spec.kv_heads, spec.n_tokens, spec.k_dim, spec.v_dim) < 1:
        raise FormatError(f"part {part.group} has a dimension of 0: {spec}")
    return spec


def _check_fields(part: PartSpec, pipeline: Pipeline, specs: Sequence[ChunkSpec]) -> None:
    """Raise FormatError unless the part has the fields that the codec stores for this geometry, packed as the codec may pack them.

    The first part may have the need of every row behind them.
    """
    found = {f.name: (f.dtype, f.shape) for f in part.fields}
    layout = dict(pipeline.layout(specs, part.group))
    if part.group == 0 and NEED in found:
        layout[NEED] = ("float16", (specs[0].n_tokens,))
    if found != layout or list(found) != list(layout):
        raise FormatError(f"part {part.group} has fields {found}, but {pipeline.spec.label} stores {layout}")
    for field in part.fields:
        if field.packing != "raw" and not any(s.name == field.packing and s.packs(field.name) for s in pipeline.byte_stages):
            raise FormatError(f"field {field.name} is packed as {field.packing}, which the codec {pipeline.spec.label} does not do")


def _load(field: FieldSpec, part: Buffer, pipeline: Pipeline) -> torch.Tensor:
    """Return the field's tensor; a view of the part's bytes when the field is not packed."""
    stage = next((stage for stage in pipeline.byte_stages if stage.name == field.packing and stage.packs(field.name)), None)
    if stage is None:
        return tensor_of(part, field.dtype, field.shape, field.offset)
    packed = memoryview(part).cast("B")[field.offset : field.offset + field.nbytes]
    return tensor_of(stage.unpack(packed, field.raw_nbytes), field.dtype, field.shape)


def _empty(spec: ChunkSpec, device: torch.device | str) -> KVChunk:
    """Return a chunk of zero tokens."""
    rows = (spec.n_layers, spec.kv_heads, 0)
    k, v = (torch.empty(*rows, dim, dtype=DTYPES[spec.dtype], device=device) for dim in (spec.k_dim, spec.v_dim))
    return KVChunk(k, v)
