"""The decoded tensors of a stored passage: one KVChunk per layer group, keys before RoPE."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from kvstore.core.errors import InvalidInputError
from kvstore.core.identity import LayerGroup

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ChunkSpec:
    """The shape of a KVChunk without its values.

    Parameters
    ----------
    n_layers, kv_heads, n_tokens, k_dim, v_dim : int
        L, H, T and the head dimensions of K and V.
    dtype : str
        A key of DTYPES.
    layers : tuple of int
        The model layers whose KV it is, which need not be as many as `n_layers` once a transform has mixed them; empty where nobody asks.
    """

    n_layers: int
    kv_heads: int
    n_tokens: int
    k_dim: int
    v_dim: int
    dtype: str
    layers: tuple[int, ...] = ()

    @classmethod
    def of_group(cls, group: LayerGroup, n_tokens: int, dtype: str) -> ChunkSpec:
        """Return the spec of `n_tokens` tokens over one layer group."""
        return cls(len(group.layers), group.kv_heads, n_tokens, group.k_dim, group.v_dim, dtype, group.layers)

    @property
    def shape(self) -> ChunkSpec:
        """The same without layers: what the tensors alone tell."""
        return replace(self, layers=())

    @property
    def n_values(self) -> int:
        """Values of K and V together."""
        return self.n_layers * self.kv_heads * self.n_tokens * (self.k_dim + self.v_dim)

    @property
    def nbytes(self) -> int:
        """Bytes of K and V as the model holds them."""
        return self.n_values * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class KVChunk:
    """K before RoPE (L, H, T, D) and V (L, H, T, Dv) of one passage over one layer group, in the model's dtype.

    Tensors are never written to after construction: a request that recomputes rows does so in a cache of its own.

    `need` (T,) float16 is the share of its attention that each row pays to earlier passages when it is read in its document; the first
    layer group of a passage that was read alone may have it.

    `asked` (L, H, D) float32 is how much the queries of the passage's last rows ask for each channel of K: their mean square over those
    rows, the query heads of a KV head and both channels of a rotated pair. An engine that computed the passage says it where it was told
    to observe them; it is not stored.
    """

    k: torch.Tensor
    v: torch.Tensor
    need: torch.Tensor | None = None
    asked: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.k.dim() != 4 or self.k.shape[:3] != self.v.shape[:3] or self.k.dtype != self.v.dtype:
            raise InvalidInputError(f"k and v must be (L, H, T, D) of one dtype, got {tuple(self.k.shape)} and {tuple(self.v.shape)}")
        if self.need is not None and (self.need.shape != self.k.shape[2:3] or self.need.dtype != torch.float16):
            raise InvalidInputError(f"need must be ({self.k.shape[2]},) float16, got {tuple(self.need.shape)} {self.need.dtype}")
        n_layers, kv_heads, _, dim = self.k.shape
        if self.asked is not None and (self.asked.shape != (n_layers, kv_heads, dim) or self.asked.dtype != torch.float32):
            raise InvalidInputError(
                f"asked must be ({n_layers}, {kv_heads}, {dim}) float32, got {tuple(self.asked.shape)} {self.asked.dtype}"
            )

    @property
    def spec(self) -> ChunkSpec:
        """The shape and dtype of this chunk."""
        n_layers, kv_heads, n_tokens, k_dim = self.k.shape
        return ChunkSpec(n_layers, kv_heads, n_tokens, k_dim, self.v.shape[-1], str(self.k.dtype).removeprefix("torch."))

    @property
    def nbytes(self) -> int:
        """Bytes that k and v occupy."""
        return self.k.nbytes + self.v.nbytes

    def copy(self) -> KVChunk:
        """Return the same in memory of its own."""
        return KVChunk(self.k.clone(), self.v.clone(), *(None if x is None else x.clone() for x in (self.need, self.asked)))


PassageKV = tuple[KVChunk, ...]
"""The chunks of one passage, one per layer group of the model's layout."""
