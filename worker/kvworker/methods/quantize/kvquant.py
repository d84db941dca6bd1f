"""Levels where the values are, and one value of a hundred kept: 2 to 4 bits a value, and any token decodes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from kvkernels import kvquant
from kvkernels.packing import packed_nbytes
from kvstore.core.errors import InvalidInputError
from kvstore.core.stages import Traits
from kvworker.calibrate.levels import fit_levels
from kvworker.calibrate.statistics import LayerStatistics, Statistics
from kvworker.chunk import DTYPES, ChunkSpec, KVChunk
from kvworker.codec.stages import Calibrated, Fields, Layout, Quantizer, Tables

_BITS = (2, 3, 4)
_MOST_OUTLIERS = 100
_CLIPPED = 0.0005  # of a channel's values at either end, since tokens that draw attention tend to lie far out; the paper takes 0.005
_LEAST_HALF = 2.0**-10  # of the mean over channels: what a channel that did not vary in calibration is measured by


@dataclass(frozen=True)
class Kvquant(Calibrated, Quantizer):
    """Round to levels fitted to the model's values, keys by ranges per channel, values by a range per token, and keep a few outliers.

    Levels are k-means centres, one set per layer and side. Values count by what their error costs: the paper takes squared gradients; here
    it is the squares of the attention that a token gets, in K times those of the queries on a channel. The channels of all heads of a token
    share their outliers, and for V their range. In 16-bit models a value takes bits + 32 * outliers / 1000, one of V 32 / C more.

    Paper: KVQuant (NeurIPS 2024, arXiv 2401.18079); nuq4-1% there is `k_bits=4,v_bits=4`. Put `sinks:n=1` or more before it, as the paper
    does. A token keeps as many outliers as any other, so that a chunk has a size; the paper's keys keep what is beyond thresholds.

    Parameters
    ----------
    k_bits, v_bits : int
        2, 3 or 4.
    outliers : int
        Values kept of 1,000, rounded, but at least one of a token where it is not 0; 0 to 100.
    artifact : str
        Digest of the calibrated tables.
    """

    name: ClassVar[str] = "kvquant"
    traits: ClassVar[Traits] = Traits(is_tp_splittable=False, is_token_granular=True)
    fitted: ClassVar[tuple[str, ...]] = ("k_bits", "outliers", "v_bits")
    k_bits: int = 3
    v_bits: int = 3
    outliers: int = 10
    artifact: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if {self.k_bits, self.v_bits} - set(_BITS) or not 0 <= self.outliers <= _MOST_OUTLIERS:
            raise InvalidInputError(
                f"kvquant: {self.k_bits} and {self.v_bits} bits, {self.outliers} outliers; "
                f"choose bits in {_BITS} and 0 to {_MOST_OUTLIERS} outliers"
            )

    def fit(self, statistics: Statistics) -> Mapping[int, Tables]:
        """Return, per layer, k.middle and k.half (C,), k.levels and v.levels (2**bits,), all float32."""
        return {layer: self._fit_layer(own) for layer, own in sorted(statistics.layers.items())}

    def _fit_layer(self, own: LayerStatistics) -> Tables:
        """Return the tables of one layer."""
        k, v = (side.sample.transpose(0, 1).flatten(1) for side in (own.k, own.v))  # (N, C)
        token_costs = own.mass_square[:, None]
        middle, half = _ranges(k)
        k_levels = _levels(k, middle, half, token_costs * own.q_square.flatten(), 2**self.k_bits)
        _, low, high = kvquant.narrowest(v, self._n_kept(v.shape[1]))
        v_levels = _levels(v, low / 2 + high / 2, high / 2 - low / 2, token_costs, 2**self.v_bits)
        return {"k.middle": middle, "k.half": half, "k.levels": k_levels, "v.levels": v_levels}

    def _n_kept(self, n_channels: int) -> int:
        """Return the outliers of a token."""
        wanted = max(1, round(n_channels * self.outliers / 1000)) if self.outliers else 0
        return min(wanted, n_channels - 1)

    def _sides(self, spec: ChunkSpec) -> tuple[tuple[str, int, int], tuple[str, int, int]]:
        """Return the sides with their channels and bits."""
        return ("k", spec.kv_heads * spec.k_dim, self.k_bits), ("v", spec.kv_heads * spec.v_dim, self.v_bits)

    def layout(self, spec: ChunkSpec) -> Layout:
        """Return, for k and for v: codes uint8 (L, T, bytes), where uint8 (L, T, 2 N) and kept (L, T, N) if N is not 0; for v also middle
        and half (L, T, 1), all three in the chunk's dtype."""
        rows = (spec.n_layers, spec.n_tokens)
        fields: dict[str, tuple[str, tuple[int, ...]]] = {}
        for side, n_channels, bits in self._sides(spec):
            n_kept = self._n_kept(n_channels)
            fields[f"{side}.codes"] = ("uint8", (*rows, packed_nbytes(n_channels, 2**bits)))
            if n_kept:
                fields[f"{side}.where"], fields[f"{side}.kept"] = ("uint8", (*rows, 2 * n_kept)), (spec.dtype, (*rows, n_kept))
        return fields | dict.fromkeys(("v.middle", "v.half"), (spec.dtype, (*rows, 1)))

    def encode(self, chunk: KVChunk, spec: ChunkSpec) -> Fields:
        """Return codes and outliers of k and of v, and the ranges of v."""
        middle, half, k_levels, v_levels = (
            self.table(name, spec.layers, chunk.k.device) for name in ("k.middle", "k.half", "k.levels", "v.levels")
        )
        (_, k_channels, _), (_, v_channels, _) = self._sides(spec)
        k_parts = kvquant.encode_keys(chunk.k, middle, half, k_levels, self._n_kept(k_channels))
        *v_parts, v_middle, v_half = kvquant.encode_values(chunk.v, v_levels, self._n_kept(v_channels))
        fields: Fields = {"v.middle": v_middle, "v.half": v_half}
        for side, parts in (("k", k_parts), ("v", v_parts)):
            fields |= {f"{side}.{name}": part for name, part in zip(("codes", "where", "kept"), parts, strict=True)}
        return fields

    def decode(self, fields: Fields, spec: ChunkSpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Return k and v in the model's dtype."""
        device = fields["k.codes"].device
        k_middle, k_half = (self.table(f"k.{name}", spec.layers, device)[:, None] for name in ("middle", "half"))
        ranges = ((k_middle, k_half), (fields["v.middle"], fields["v.half"]))
        k, v = (self._decode_side(fields, spec, side, n, *own) for (side, n, _), own in zip(self._sides(spec), ranges, strict=True))
        return k, v

    def _decode_side(
        self, fields: Fields, spec: ChunkSpec, side: str, n_channels: int, middle: torch.Tensor, half: torch.Tensor
    ) -> torch.Tensor:
        """Return k or v."""
        codes = fields[f"{side}.codes"]
        none = codes.new_empty(spec.n_layers, spec.n_tokens, 0)
        where, kept = (fields.get(f"{side}.{name}", none) for name in ("where", "kept"))
        levels = self.table(f"{side}.levels", spec.layers, codes.device)
        return kvquant.decode(codes, where, kept, middle, half, levels, spec.kv_heads, n_channels, DTYPES[spec.dtype])


def _levels(x: torch.Tensor, middle: torch.Tensor, half: torch.Tensor, costs: torch.Tensor, n_levels: int) -> torch.Tensor:
    """Return levels for values (N, C) within their ranges; `costs` is the weight of squared errors, and every value counts a little."""
    y = (x - middle) / half.clamp(min=1e-30)
    weights = (costs * half.square()).expand(y.shape)
    return fit_levels(y, (weights / weights.mean().clamp(min=1e-30) + 0.01) * (y.abs() <= 1), n_levels)


def _ranges(k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return middle and half the width, (C,) each, of the range of each channel of a sample (N, C), without its ends."""
    ordered = k.sort(0).values
    n_clipped = int(len(k) * _CLIPPED)
    low, high = ordered[n_clipped], ordered[len(k) - 1 - n_clipped]
    half = high / 2 - low / 2
    return low / 2 + high / 2, half.clamp(min=float(half.mean()) * _LEAST_HALF)
