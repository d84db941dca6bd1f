"""Codes of 3 to 16 levels over channels of like range, per token: as small as KIVI's 2 bits, and any token decodes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from kvkernels import skvq
from kvstore.core.errors import InvalidInputError
from kvstore.core.stages import Traits
from kvworker.calibrate.clusters import cluster
from kvworker.calibrate.statistics import LayerStatistics, SideStatistics, Statistics
from kvworker.chunk import DTYPES, ChunkSpec, KVChunk
from kvworker.codec.stages import Calibrated, Fields, Layout, Quantizer, Tables

_CLIPS = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.8, 0.75)
_CLIP_TOKENS = 512  # of the sample: the factor is one of eight, and 4,096 tokens choose the same
_GROUPS = (16, 32, 64, 128, 256)
_LARGEST = 256.0  # of calibrated values over their unit: leaves float8 (at most 448) room for values that were not seen


@dataclass(frozen=True)
class Skvq(Calibrated, Quantizer):
    """Round each token over groups of channels, of all heads of a layer, whose ranges are alike in the model.

    Channels are grouped once per model, by clusters of their smallest and largest values; a group's range is then shrunk by a factor per
    layer and side that is chosen for the least error of attention. A value takes log2(levels) bits, 1.6 for 3 levels, and 16 / group
    more with float8 parameters, 32 / group with float16.

    Paper: SKVQ (arXiv 2405.06219). The range here shrinks about its middle; put `sinks:n=5` before it as the paper does.

    Parameters
    ----------
    k_levels, v_levels : int
        3, 4, 8 or 16.
    group : int
        Channels that share a scale, on average: 16, 32, 64, 128 or 256. The paper's default is 128.
    parameters : str
        Type of scale and zero: "float8" (E4M3) or "float16".
    artifact : str
        Digest of the calibrated tables.
    """

    name: ClassVar[str] = "skvq"
    traits: ClassVar[Traits] = Traits(is_tp_splittable=False, is_token_granular=True)
    fitted: ClassVar[tuple[str, ...]] = ("k_levels", "v_levels", "group")
    k_levels: int = 4
    v_levels: int = 4
    group: int = 128
    parameters: str = "float8"
    artifact: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if {self.k_levels, self.v_levels} - set(skvq.LEVELS) or self.group not in _GROUPS or self.parameters not in skvq.PARAMETERS:
            raise InvalidInputError(
                f"skvq: {self.k_levels} and {self.v_levels} levels, group {self.group}, parameters {self.parameters}; "
                f"choose levels in {skvq.LEVELS}, group in {_GROUPS}, parameters in {tuple(skvq.PARAMETERS)}"
            )

    def fit(self, statistics: Statistics) -> Mapping[int, Tables]:
        """Return, per layer, groups (C,) int64, clip (1,) and unit (1,) float32, for k and for v."""
        return {
            layer: {**self._fit_side("k", own.k, own), **self._fit_side("v", own.v, own)}
            for layer, own in sorted(statistics.layers.items())
        }

    def _fit_side(self, side: str, seen: SideStatistics, layer: LayerStatistics) -> Tables:
        """Return the tables of K or V of one layer."""
        ranges = torch.stack((seen.low.flatten(), seen.high.flatten()), 1)  # (C, 2)
        groups = cluster(ranges, self._n_groups(len(ranges)))
        unit = torch.exp2(torch.log2(ranges.abs().amax().clamp(min=1e-30) / _LARGEST).ceil()).view(1)
        losses = torch.stack([self._loss(side, seen, layer, groups, torch.tensor([clip]), unit) for clip in _CLIPS])
        clip = torch.tensor([_CLIPS[int(losses.argmin())]])
        return {f"{side}.groups": groups, f"{side}.clip": clip, f"{side}.unit": unit}

    def _loss(
        self, side: str, seen: SideStatistics, layer: LayerStatistics, groups: torch.Tensor, clip: torch.Tensor, unit: torch.Tensor
    ) -> torch.Tensor:
        """Return the squared error of the sample as attention feels it: K weighed by the queries, V by the attention that it gets."""
        x, levels = seen.sample[None, :, :_CLIP_TOKENS], self._levels(side)
        parts = skvq.encode(x, groups[None], self._n_groups(len(groups)), clip, unit, levels, self.parameters)
        error = (skvq.decode(*parts, groups[None], unit, x.shape[1], levels, torch.float32) - x)[0].square()
        weights = layer.q_square[:, None] if side == "k" else layer.mass_square[:_CLIP_TOKENS, None]  # (H, 1, D) or (N, 1)
        return (error * weights).sum()

    def _n_groups(self, n_channels: int) -> int:
        return -(-n_channels // self.group)

    def _levels(self, side: str) -> int:
        return self.k_levels if side == "k" else self.v_levels

    def layout(self, spec: ChunkSpec) -> Layout:
        """Return codes uint8 (L, T, bytes), scale and zero (L, T, groups), for k and for v; float8 is stored as its bits, uint8."""
        stored = "uint8" if self.parameters == "float8" else self.parameters
        fields: dict[str, tuple[str, tuple[int, ...]]] = {}
        for side, dim in (("k", spec.k_dim), ("v", spec.v_dim)):
            n_channels = spec.kv_heads * dim
            codes, per_group = skvq.stored_shapes(spec.n_layers, spec.n_tokens, n_channels, self._levels(side), self._n_groups(n_channels))
            fields[f"{side}.codes"] = ("uint8", codes)
            fields[f"{side}.scale"] = fields[f"{side}.zero"] = (stored, per_group)
        return fields

    def encode(self, chunk: KVChunk, spec: ChunkSpec) -> Fields:
        """Return codes, scales and zeros of k and of v."""
        fields: Fields = {}
        for side, x in (("k", chunk.k), ("v", chunk.v)):
            groups, clip, unit = (self.table(f"{side}.{name}", spec.layers, x.device) for name in ("groups", "clip", "unit"))
            n_groups = self._n_groups(spec.kv_heads * x.shape[-1])
            codes, *parameters = skvq.encode(x, groups, n_groups, clip[:, 0], unit[:, 0], self._levels(side), self.parameters)
            fields[f"{side}.codes"] = codes
            fields[f"{side}.scale"], fields[f"{side}.zero"] = (p.view(torch.uint8) if p.itemsize == 1 else p for p in parameters)
        return fields

    def decode(self, fields: Fields, spec: ChunkSpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Return k and v rounded to the model's dtype."""
        k, v = (self._decode_side(fields, spec, side) for side in "kv")
        return k, v

    def _decode_side(self, fields: Fields, spec: ChunkSpec, side: str) -> torch.Tensor:
        """Return k or v."""
        codes, scale, zero = (fields[f"{side}.{name}"] for name in ("codes", "scale", "zero"))
        scale, zero = (x.view(skvq.PARAMETERS[self.parameters]) for x in (scale, zero))
        groups, unit = (self.table(f"{side}.{name}", spec.layers, codes.device) for name in ("groups", "unit"))
        return skvq.decode(codes, scale, zero, groups, unit[:, 0], spec.kv_heads, self._levels(side), DTYPES[spec.dtype])
