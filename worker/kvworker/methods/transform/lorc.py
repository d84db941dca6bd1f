"""Latents in place of heads: K and V along the few axes that a model's weights, or its activations, mostly use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from kvkernels import lorc
from kvstore.core.errors import InvalidInputError
from kvstore.core.stages import Traits
from kvworker.calibrate.statistics import LayerStatistics, SideStatistics, Statistics
from kvworker.chunk import ChunkSpec, KVChunk
from kvworker.codec.stages import Calibrated, Fields, Layout, Tables, Transform

BASES = ("activations", "weights")


@dataclass(frozen=True)
class Lorc(Calibrated, Transform):
    """Turn all heads of a layer to the axes that its K and V mostly lie along, more of them in shallow layers than in deep ones.

    Axes of the weights need no text, but a model uses few of the inputs that they allow for: those of the activations lose less at equal
    rank. What goes on is one head of latents, the largest first, for any quantizer; `pca` gives the same axes as many bits as each is worth
    and is smaller at equal loss. Layers in runs of `run` have one rank, so that a layer group has one; in a group over several runs the
    missing latents are 0.

    Paper: LoRC (arXiv 2410.03111), which folds the axes into the weights; here they turn what the model has computed.

    Parameters
    ----------
    basis : str
        What the axes are those of: "activations" or "weights".
    most, least : int
        Axes of the first and of the last layers, in percent of the channels, 1 to 100.
    run : int
        Layers that share a rank, 1 to 64; at most half of the model's.
    artifact : str
        Digest of the calibrated tables.
    """

    name: ClassVar[str] = "lorc"
    traits: ClassVar[Traits] = Traits(is_tp_splittable=False, is_token_granular=True)
    fitted: ClassVar[tuple[str, ...]] = ("basis", "most", "least", "run")
    basis: str = "activations"
    most: int = 60
    least: int = 40
    run: int = 8
    artifact: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.basis not in BASES or not 1 <= self.least <= self.most <= 100 or not 1 <= self.run <= 64:
            raise InvalidInputError(
                f"lorc: basis {self.basis}, {self.most} to {self.least} percent, runs of {self.run}; "
                f"choose basis in {BASES}, 1 <= least <= most <= 100 and run within 1 and 64"
            )

    def fit(self, statistics: Statistics) -> Mapping[int, Tables]:
        """Return, per layer, for k and for v: mean (C,), basis (C, R), 0 beyond the layer's own rank, and rank (1,) int64."""
        layers = dict(sorted(statistics.layers.items()))
        turned = [{side: lorc.axes(self._gram(side, own)) for side in "kv"} for own in layers.values()]
        conditions = [own["k"][1] + own["v"][1] for own in turned]
        percents = self._in_runs(lorc.ranks(conditions, self.most, self.least))
        return {
            layer: {**_tables("k", own.k, axes["k"][0], percent, self.most), **_tables("v", own.v, axes["v"][0], percent, self.most)}
            for (layer, own), axes, percent in zip(layers.items(), turned, percents, strict=True)
        }

    def _gram(self, side: str, own: LayerStatistics) -> torch.Tensor:
        """Return the products of channels whose axes are asked for; without weights raises InvalidInputError."""
        gram = own.k_gram if side == "k" else own.v_gram
        if self.basis == "weights":
            if gram is None:
                raise InvalidInputError("lorc:basis=weights needs weights, which these statistics lack: run `larder calibrate` again")
            return gram
        seen = own.k if side == "k" else own.v
        rows = (seen.sample - seen.mean[:, None]).transpose(0, 1).flatten(1).double()
        return rows.T @ rows

    def _in_runs(self, percents: list[int]) -> list[int]:
        """Return the largest of each run for all of its layers."""
        run = min(self.run, math.ceil(len(percents) / 2))
        return [max(percents[n // run * run : (n // run + 1) * run]) for n in range(len(percents))]

    def inner(self, spec: ChunkSpec) -> ChunkSpec:
        """Return one head of latents."""
        k_dim, v_dim = (int(self.table(f"{side}.rank", spec.layers).max()) for side in "kv")
        return replace(spec, kv_heads=1, k_dim=k_dim, v_dim=v_dim)

    def layout(self, spec: ChunkSpec) -> Layout:
        """Return nothing: the axes are the model's."""
        return {}

    def apply(self, chunk: KVChunk, spec: ChunkSpec) -> tuple[KVChunk, Fields]:
        """Return the latents of K and V."""
        return KVChunk(lorc.project(chunk.k, *self._turn("k", chunk.k, spec)), lorc.project(chunk.v, *self._turn("v", chunk.v, spec))), {}

    def restore(self, chunk: KVChunk, fields: Fields, spec: ChunkSpec) -> KVChunk:
        """Return K and V from their latents."""
        k, v = (lorc.rebuild(x, *self._turn(side, x, spec), spec.kv_heads) for side, x in (("k", chunk.k), ("v", chunk.v)))
        return KVChunk(k, v)

    def _turn(self, side: str, x: torch.Tensor, spec: ChunkSpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean (L, C) and basis (L, C, R) on x's device, R being what `inner` says."""
        rank = int(self.table(f"{side}.rank", spec.layers).max())
        mean, basis = (self.table(f"{side}.{name}", spec.layers, x.device) for name in ("mean", "basis"))
        return mean, basis[..., :rank]


def _tables(side: str, seen: SideStatistics, axes: torch.Tensor, percent: int, most: int) -> Tables:
    """Return the tables of one side of a layer with its rank in percent."""
    n_channels = len(axes)
    rank, width = (max(n_channels * share // 100, 1) for share in (percent, most))
    basis = torch.zeros(n_channels, width)
    basis[:, :rank] = axes[:, :rank]
    return {f"{side}.mean": seen.mean.flatten(), f"{side}.basis": basis, f"{side}.rank": torch.tensor([rank])}
