"""The kinds of stages that know tensors, and the named tensors that pass between them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch

from kvstore.codecs import Stage
from kvworker.chunk import ChunkSpec, KVChunk

Fields = dict[str, torch.Tensor]
"""The arrays of an encoded part by name, such as "k.codes"; their order is the order in which they are stored."""

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Element type and shape of every field of an encoded part, in stored order."""


class Quantizer(Stage):
    """Turn the K and V of a chunk into fields, and back.

    A subclass is one file of `kvworker/methods/quantize` with its name. It never sees zero tokens, and NaN, infinity or magnitudes
    of 2**126 and more only when it is lossless: the pipeline refuses them.
    """

    is_lossless: ClassVar[bool] = False

    @abstractmethod
    def layout(self, spec: ChunkSpec) -> Layout:
        """Return the fields of a chunk of this shape. Sizes in stored bytes follow from nothing else; it allocates nothing."""

    @abstractmethod
    def encode(self, chunk: KVChunk) -> Fields:
        """Return the fields that `layout` promises, on the chunk's device."""

    @abstractmethod
    def decode(self, fields: Fields, spec: ChunkSpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Return k (L, H, T, D) and v (L, H, T, Dv) in the spec's dtype, on the fields' device; `fields` match `layout(spec)`."""
