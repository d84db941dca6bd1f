"""The first tokens of a chunk beside the rest, as they are: attention sinks look like no other token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from kvkernels import place
from kvstore.core.errors import InvalidInputError
from kvstore.core.stages import Traits
from kvworker.chunk import ChunkSpec, KVChunk
from kvworker.codec.stages import Fields, Layout, PlacingTransform

_MOST = 1024


@dataclass(frozen=True)
class Sinks(PlacingTransform):
    """Keep the first tokens of a chunk in the model's dtype and hand on the others.

    Most passages are read alone, behind a BOS of their own, so every chunk has sinks: tokens that draw attention whatever they say, with
    keys and values that would stretch the scales of a whole group.

    Paper: StreamingLLM (ICLR 2024, arXiv 2309.17453) for sinks; SKVQ (arXiv 2405.06219) keeps 5 of them, KVTC (arXiv 2511.01815) 4.

    Parameters
    ----------
    n : int
        Tokens to keep, 1 to 1,024; a chunk of no more is kept whole.
    """

    name: ClassVar[str] = "sinks"
    traits: ClassVar[Traits] = Traits(is_bit_exact=True, is_token_granular=True)
    n: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.n <= _MOST:
            raise InvalidInputError(f"sinks: n must be within 1 and {_MOST}, got {self.n}")

    def inner(self, spec: ChunkSpec) -> ChunkSpec:
        """Return the spec of the other tokens."""
        return replace(spec, n_tokens=max(spec.n_tokens - self.n, 0))

    def layout(self, spec: ChunkSpec) -> Layout:
        """Return sinks.k (L, H, n, D) and sinks.v (L, H, n, Dv) in the chunk's dtype."""
        rows = (spec.n_layers, spec.kv_heads, min(self.n, spec.n_tokens))
        return {"sinks.k": (spec.dtype, (*rows, spec.k_dim)), "sinks.v": (spec.dtype, (*rows, spec.v_dim))}

    def apply(self, chunk: KVChunk, spec: ChunkSpec) -> tuple[KVChunk, Fields]:
        """Return views of the chunk."""
        rest = KVChunk(chunk.k[:, :, self.n :], chunk.v[:, :, self.n :], asked=chunk.asked)
        return rest, {"sinks.k": chunk.k[:, :, : self.n], "sinks.v": chunk.v[:, :, : self.n]}

    def restore(self, chunk: KVChunk, fields: Fields, spec: ChunkSpec) -> KVChunk:
        """Return the first tokens and the others in one chunk."""
        return KVChunk(torch.cat((fields["sinks.k"], chunk.k), 2), torch.cat((fields["sinks.v"], chunk.v), 2))

    def place(
        self, fields: Fields, spec: ChunkSpec, side: str, turn: place.Turn | None, rows: torch.Tensor, cache: torch.Tensor
    ) -> tuple[place.Turn | None, torch.Tensor]:
        """Write the first tokens to their rows."""
        first, rest = (None, None) if turn is None else ((turn[0][: self.n], turn[1][: self.n]), (turn[0][self.n :], turn[1][self.n :]))
        place.write_values(fields[f"sinks.{side}"].flatten(0, 1), first, rows[: self.n], cache.view(-1, *cache.shape[2:]))
        return rest, rows[self.n :]
