"""Channels of K that the model's queries hardly look at, left out: what is left goes on to any quantizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from kvkernels import think
from kvstore.core.errors import InvalidInputError
from kvstore.core.stages import Traits
from kvworker.calibrate.statistics import Statistics
from kvworker.chunk import ChunkSpec, KVChunk
from kvworker.codec.stages import Calibrated, Fields, Layout, Tables, Transform


@dataclass(frozen=True)
class Think(Calibrated, Transform):
    """Drop the same channel pairs of K in every chunk, chosen per layer and head by the energy of the model's queries and the spread of K.

    A shared chunk knows no query, so the mask is calibrated and travels with the artifact, not with the chunk. V stays whole. A method that
    drops by the queries of one request stores what nobody else can use; that is for a private prefix, and not done here. It pays where few
    channels carry most of the queries' energy; in a model whose queries ask evenly it costs as much as dropping the smallest keys.

    Paper: ThinK (ICLR 2025, arXiv 2407.21018). Pairs of channels are dropped before RoPE, so keys can still be turned to any position, and
    dropped channels come back as their mean instead of 0.

    Parameters
    ----------
    drop : int
        Pairs to leave out, in percent, 1 to 90, rounded down. The paper's default is 40.
    artifact : str
        Digest of the calibrated tables.
    """

    name: ClassVar[str] = "think"
    traits: ClassVar[Traits] = Traits(is_token_granular=True)
    fitted: ClassVar[tuple[str, ...]] = ("drop",)
    drop: int = 40
    artifact: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.drop <= 90:
            raise InvalidInputError(f"think: drop must be within 1 and 90 percent, got {self.drop}")

    def fit(self, statistics: Statistics) -> Mapping[int, Tables]:
        """Return, per layer, kept (H, channels) int64 and mean (H, D) float32."""
        tables = {}
        for layer, own in sorted(statistics.layers.items()):
            variance = (own.k.square - own.k.mean.square()).clamp(min=0)
            tables[layer] = {"kept": think.choose(own.q_square, variance, self.drop), "mean": own.k.mean}
        return tables

    def inner(self, spec: ChunkSpec) -> ChunkSpec:
        """Return the spec with fewer channels of K."""
        return replace(spec, k_dim=think.n_kept(spec.k_dim, self.drop))

    def layout(self, spec: ChunkSpec) -> Layout:
        """Return nothing: the mask is the model's."""
        return {}

    def apply(self, chunk: KVChunk, spec: ChunkSpec) -> tuple[KVChunk, Fields]:
        """Return the chunk without the dropped channels."""
        return KVChunk(think.keep(chunk.k, self.table("kept", spec.layers, chunk.k.device)), chunk.v), {}

    def restore(self, chunk: KVChunk, fields: Fields, spec: ChunkSpec) -> KVChunk:
        """Return the chunk with the means of the dropped channels in their place."""
        kept, mean = (self.table(name, spec.layers, chunk.k.device) for name in ("kept", "mean"))
        return KVChunk(think.fill(chunk.k, kept, mean), chunk.v)
