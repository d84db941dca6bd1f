"""Channels of K that a passage's own queries hardly look at, left out; the passage says which."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from kvkernels import think
from kvstore.core.errors import InvalidInputError
from kvstore.core.stages import Traits
from kvworker.chunk import ChunkSpec, KVChunk
from kvworker.codec.stages import Fields, Layout, Transform

_LEAST = 2.0**-126


@dataclass(frozen=True)
class ThinkQueries(Transform):
    """Drop other channel pairs of K in each chunk, chosen per layer and head by what the chunk's last rows ask for and the spread of K.

    For private prefixes: conversations and other text that is read on where it stands, whose last rows ask much as what comes next does.
    Passages that any prompt may use are better served by `think`, whose mask is the model's. The mask and the means of what was dropped
    travel with the chunk, so nothing has to be calibrated and any reader decodes it. Equal text makes equal masks: nothing but the rows
    of the chunk itself is asked. V stays whole. A chunk whose queries nobody observed drops the pairs of K that spread least.

    Paper: ThinK (ICLR 2025, arXiv 2407.21018). Queries of the last 32 rows decide, means over the query heads of a KV head. As in `think`
    pairs are scored before RoPE and come back as their mean instead of 0; the last rows drop their channels too, which the paper keeps.

    Parameters
    ----------
    drop : int
        Pairs to leave out, in percent, 1 to 90, rounded down. The paper's default is 40.
    """

    name: ClassVar[str] = "think_queries"
    traits: ClassVar[Traits] = Traits(is_query_aware=True)
    drop: int = 40

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.drop <= 90:
            raise InvalidInputError(f"think_queries: drop must be within 1 and 90 percent, got {self.drop}")

    def inner(self, spec: ChunkSpec) -> ChunkSpec:
        """Return the spec with fewer channels of K."""
        return replace(spec, k_dim=think.n_kept(spec.k_dim, self.drop))

    def layout(self, spec: ChunkSpec) -> Layout:
        """Return mask (L, H, bytes) uint8 and mean (L, H, dropped) in the chunk's dtype; nothing where heads have no pair to spare."""
        n_dropped = spec.k_dim - think.n_kept(spec.k_dim, self.drop)
        if not n_dropped:
            return {}
        rows = (spec.n_layers, spec.kv_heads)
        return {
            "think_queries.mask": ("uint8", (*rows, think.mask_nbytes(spec.k_dim))),
            "think_queries.mean": (spec.dtype, (*rows, n_dropped)),
        }

    def apply(self, chunk: KVChunk, spec: ChunkSpec) -> tuple[KVChunk, Fields]:
        """Return the chunk without the dropped channels, its mask and their means."""
        if not self.layout(spec):
            return chunk, {}
        k = chunk.k.float()
        largest = k.abs().amax((2, 3), keepdim=True).clamp(min=_LEAST)
        mean, spread = (k / k.shape[2]).sum(2), (k / largest).var(2, correction=0)
        kept = think.choose(torch.ones_like(spread) if chunk.asked is None else chunk.asked, spread, self.drop)
        mask = think.to_mask(kept, spec.k_dim)
        _, others = think.from_mask(mask, spec.k_dim, self.drop)
        fields = {"think_queries.mask": mask, "think_queries.mean": mean.gather(2, others).to(chunk.k.dtype)}
        return KVChunk(think.keep(chunk.k, kept), chunk.v), fields

    def restore(self, chunk: KVChunk, fields: Fields, spec: ChunkSpec) -> KVChunk:
        """Return the chunk with the means of the dropped channels in their place; ValueError for a mask of another number of pairs."""
        if not self.layout(spec):
            return chunk
        kept, others = think.from_mask(fields["think_queries.mask"], spec.k_dim, self.drop)
        dropped = fields["think_queries.mean"]
        mean = dropped.new_zeros(*dropped.shape[:2], spec.k_dim).scatter_(2, others, dropped)
        return KVChunk(think.fill(chunk.k, kept, mean), chunk.v)
