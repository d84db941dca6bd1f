"""The kinds of stages that know tensors, and the named tensors that pass between them.

A codec is transforms, one quantizer, then byte stages. Between two stages stands a `ChunkSpec`: the geometry of the chunk there, and the
model layers that it holds. Sizes in stored bytes follow from specs alone (`layout`), never from values.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Self

import torch

from kvkernels.place import Turn
from kvstore.codecs import Stage
from kvstore.core.errors import InvalidInputError, NotFoundError
from kvstore.core.stages import StageSpec
from kvworker.chunk import ChunkSpec, KVChunk

if TYPE_CHECKING:
    from kvworker.calibrate.statistics import Statistics

Fields = dict[str, torch.Tensor]
"""The arrays of an encoded part by name, such as "k.codes"; their order is the order in which they are stored."""

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Element type and shape of every field of an encoded part, in stored order."""

Tables = Mapping[str, torch.Tensor]
"""What was calibrated for one model layer, by name."""


class Quantizer(Stage):
    """Turn the K and V of a chunk into fields, and back.

    A subclass is one file of `kvworker/methods/quantize` with its name. It never sees zero tokens, and NaN, infinity or magnitudes
    of 2**126 and more only in a codec that is bit-exact: the pipeline refuses them.
    """

    @abstractmethod
    def layout(self, spec: ChunkSpec) -> Layout:
        """Return the fields of a chunk of this shape. Sizes in stored bytes follow from nothing else; it allocates nothing."""

    @abstractmethod
    def encode(self, chunk: KVChunk, spec: ChunkSpec) -> Fields:
        """Return the fields that `layout` promises, on the chunk's device; `spec` is the chunk's, with its model layers."""

    @abstractmethod
    def decode(self, fields: Fields, spec: ChunkSpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Return k (L, H, T, D) and v (L, H, T, Dv) in the spec's dtype, on the fields' device; `fields` match `layout(spec)`."""


class Compiled(Quantizer):
    """A quantizer whose operators torch can compile for the CPU."""

    @property
    def has_forms(self) -> bool:
        """Whether it can with these parameters."""
        return True

    @abstractmethod
    def compile(self, spec: ChunkSpec) -> None:
        """Compile what encodes and decodes chunks of this shape, with any number of tokens; takes seconds."""


class Placing(Quantizer):
    """A quantizer whose fields a GPU decodes, rotates and writes into a cache in one pass over memory."""

    @property
    def is_placed(self) -> bool:
        """Whether it does so with these parameters."""
        return True

    def check(self, spec: ChunkSpec) -> None:
        """Raise ValueError where calibrated tables do not fit a chunk, before any of it is written."""

    @abstractmethod
    def place(self, fields: Fields, spec: ChunkSpec, side: str, turn: Turn | None, rows: torch.Tensor, cache: torch.Tensor) -> None:
        """Write K or V to cache[:, :, rows] of cache (L, H, N, D), rotated by `turn` if given; see `kvkernels.place`.

        Tokens whose row is -1 are left out. `fields` and `spec` are those of the cache's layers, on its device.
        """


class Transform(Stage):
    """Turn a chunk into one of another geometry and fields beside it, and back.

    A subclass is one file of `kvworker/methods/transform` with its name; the names of its fields begin with it ("sinks.k"), so a codec has
    it once at most. It never sees zero tokens; what it hands on may have none, which later stages are then spared.
    """

    @abstractmethod
    def inner(self, spec: ChunkSpec) -> ChunkSpec:
        """Return the geometry, dtype and layers of what is handed on."""

    @abstractmethod
    def layout(self, spec: ChunkSpec) -> Layout:
        """Return the fields that are stored beside it; often none."""

    @abstractmethod
    def apply(self, chunk: KVChunk, spec: ChunkSpec) -> tuple[KVChunk, Fields]:
        """Return a chunk of the shape `inner(spec)`, and the fields that `layout` promises; changes no input."""

    @abstractmethod
    def restore(self, chunk: KVChunk, fields: Fields, spec: ChunkSpec) -> KVChunk:
        """Return a chunk of the shape `spec` from what `apply` made, or what a lossy stage left of it."""


class PlacingTransform(Transform):
    """A transform of which each token is either among its fields or handed on whole: a GPU writes both into a cache."""

    @abstractmethod
    def place(
        self, fields: Fields, spec: ChunkSpec, side: str, turn: Turn | None, rows: torch.Tensor, cache: torch.Tensor
    ) -> tuple[Turn | None, torch.Tensor]:
        """Write the tokens in its fields as `Placing.place` does, and return `turn` and `rows` of those that are handed on."""


class Crossing(Stage):
    """Turn the chunks of all layer groups into one, and back: for methods that mix layers.

    A subclass is one file of `kvworker/methods/transform`. What it makes is stored in the first part, so no layer group can be decoded
    before that part is here; fields of transforms that stand before it stay in the parts of their groups.
    """

    @abstractmethod
    def inner(self, specs: Sequence[ChunkSpec]) -> ChunkSpec:
        """Return the geometry, dtype and layers of the one chunk."""

    @abstractmethod
    def layout(self, specs: Sequence[ChunkSpec]) -> Layout:
        """Return the fields that are stored beside it in the first part."""

    @abstractmethod
    def apply(self, chunks: Sequence[KVChunk], specs: Sequence[ChunkSpec]) -> tuple[KVChunk, Fields]:
        """Return the one chunk and the fields that `layout` promises; changes no input."""

    @abstractmethod
    def restore(self, chunk: KVChunk, fields: Fields, specs: Sequence[ChunkSpec]) -> list[KVChunk]:
        """Return one chunk per layer group, of the shapes `specs`."""


class Calibrated(Stage):
    """Mixed into a stage that needs tables which were calibrated for the model: `class Skvq(Calibrated, Quantizer)`.

    The stage has the parameter `artifact`: the digest of its tables in hex, so that they are part of every chunk key, or "" where they are
    still to be named. `fitted` lists the parameters that decide the tables; stages that differ in others only share an artifact.
    """

    fitted: ClassVar[tuple[str, ...]] = ()
    artifact: str
    _by_layer: Mapping[int, Tables] | None = None

    @abstractmethod
    def fit(self, statistics: Statistics) -> Mapping[int, Tables]:
        """Return the tables of every layer in `statistics`, on the CPU; equal statistics give equal tables. What concerns all layers
        stands with the first."""

    @property
    def subject(self) -> StageSpec:
        """What an artifact must be fitted for to serve this stage: its name and the parameters in `fitted`."""
        return StageSpec(self.name, tuple(sorted((name, getattr(self, name)) for name in self.fitted)))

    def naming(self, artifact: str) -> Self:
        """Return the stage with the digest of its tables."""
        return type(self).build({**dict(self.spec.params), "artifact": artifact})

    def bound(self, by_layer: Mapping[int, Tables]) -> Self:
        """Return the stage with its tables at hand."""
        stage = copy.copy(self)
        object.__setattr__(stage, "_by_layer", by_layer)
        object.__setattr__(stage, "_on_device", {})
        return stage

    def table(self, name: str, layers: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
        """Return a table of these layers, stacked (L, ...), on a device; kept there. Raises NotFoundError where it is not at hand."""
        key = (name, tuple(layers), str(device))
        kept: dict[tuple[str, tuple[int, ...], str], torch.Tensor] = vars(self).get("_on_device", {})
        if key not in kept:
            kept[key] = torch.stack([self._find(name, layer) for layer in layers]).to(device)
        return kept[key]

    def _find(self, name: str, layer: int) -> torch.Tensor:
        """Return a table of one layer."""
        if self._by_layer is None:
            raise NotFoundError(f"codec stage {self.name} needs calibrated tables: run `larder calibrate` for this model")
        if layer not in self._by_layer or name not in self._by_layer[layer]:
            raise InvalidInputError(f"artifact {self.artifact[:16]} has no table {name} of layer {layer}: run `larder calibrate` again")
        return self._by_layer[layer][name]
