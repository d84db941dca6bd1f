"""One code for several channels that depend on each other: 2 bits a value and less, without scales, and any token decodes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from kvkernels import cq
from kvstore.core.errors import InvalidInputError
from kvstore.core.stages import Traits
from kvworker.calibrate.codebooks import codebooks
from kvworker.calibrate.statistics import Statistics
from kvworker.chunk import DTYPES, ChunkSpec, KVChunk
from kvworker.codec.stages import Calibrated, Fields, Layout, Quantizer, Tables

_COUPLES = (1, 2, 4, 8)
_BITS = (1, 2, 3, 4, 5, 6, 8, 10)


@dataclass(frozen=True)
class Cq(Calibrated, Quantizer):
    """Store each run of neighbouring channels of a head as the number of the nearest of 2**bits vectors of the model.

    Channels of a head depend on each other, so that a code for `couple` of them says more than as many codes for one. The vectors are
    k-means centres of calibration tokens. The paper weighs tokens by squared gradients of the loss; here K counts by the square root of
    the attention that its token got and V by that of the sum of its squares, which comes without gradients. What lies far from all
    calibrated values comes back as the nearest of them.

    Paper: CQ (NeurIPS 2024, arXiv 2405.03917), named CQ-<couple>c<bits>b there; 2c8b, 4c8b, 8c8b and 8c10b are 4, 2, 1 and 1.25 bits.

    Parameters
    ----------
    couple : int
        Channels of a run: 1, 2, 4 or 8.
    bits : int
        Bits of a code: 1 to 6, 8 or 10.
    artifact : str
        Digest of the calibrated codebooks.
    """

    name: ClassVar[str] = "cq"
    traits: ClassVar[Traits] = Traits(is_token_granular=True)
    fitted: ClassVar[tuple[str, ...]] = ("couple", "bits")
    couple: int = 4
    bits: int = 8
    artifact: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.couple not in _COUPLES or self.bits not in _BITS:
            raise InvalidInputError(f"cq: couple {self.couple}, bits {self.bits}; choose couple in {_COUPLES} and bits in {_BITS}")

    def fit(self, statistics: Statistics) -> Mapping[int, Tables]:
        """Return, per layer, the codebooks float16 (H, G, 2**bits, couple) of k and of v."""
        return {
            layer: {
                "k.codebooks": self._fit_side(own.k.sample, own.mass),
                "v.codebooks": self._fit_side(own.v.sample, own.mass_square),
            }
            for layer, own in sorted(statistics.layers.items())
        }

    def _fit_side(self, sample: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
        """Return the codebooks of K or V (H, N, D) of one layer, whose tokens count by the root of `mass`, and a little in any case."""
        runs = cq.runs_of(sample, self.couple)  # (H, G, N, c)
        weights = mass.sqrt() + 0.01 * mass.sqrt().mean() + 1e-30
        return codebooks(runs.flatten(0, 1), weights, 2**self.bits).view(*runs.shape[:2], 2**self.bits, self.couple)

    def layout(self, spec: ChunkSpec) -> Layout:
        """Return codes uint8 (L, H, T, bytes) for k and for v."""
        rows = (spec.n_layers, spec.kv_heads, spec.n_tokens)
        return {f"{side}.codes": ("uint8", cq.stored_shape((*rows, dim), self.couple, self.bits)) for side, dim in _dims(spec)}

    def encode(self, chunk: KVChunk, spec: ChunkSpec) -> Fields:
        """Return the codes of k and of v."""
        sides = (("k", chunk.k), ("v", chunk.v))
        return {f"{side}.codes": cq.encode(x, self.table(f"{side}.codebooks", spec.layers, x.device)) for side, x in sides}

    def decode(self, fields: Fields, spec: ChunkSpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Return k and v, vectors of the codebooks rounded to the model's dtype."""
        k, v = (self._decode_side(fields[f"{side}.codes"], spec, side, dim) for side, dim in _dims(spec))
        return k, v

    def _decode_side(self, codes: torch.Tensor, spec: ChunkSpec, side: str, dim: int) -> torch.Tensor:
        """Return k or v."""
        return cq.decode(codes, self.table(f"{side}.codebooks", spec.layers, codes.device), dim, DTYPES[spec.dtype])


def _dims(spec: ChunkSpec) -> tuple[tuple[str, int], tuple[str, int]]:
    """Return the sides and their head dimensions."""
    return ("k", spec.k_dim), ("v", spec.v_dim)
