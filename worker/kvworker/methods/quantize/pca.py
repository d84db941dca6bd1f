"""Codes of principal components: bits go where a layer's keys and values differ, and most of a layer needs few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from kvkernels import pca, place
from kvstore.core.errors import InvalidInputError
from kvstore.core.stages import Traits
from kvworker.calibrate.allocation import allocate
from kvworker.calibrate.components import Components, components
from kvworker.calibrate.statistics import LayerStatistics, Statistics
from kvworker.chunk import DTYPES, ChunkSpec, KVChunk
from kvworker.codec.stages import Calibrated, Fields, Layout, Placing, Tables

OVER = ("layer", "model")
_RATIOS = range(2, 129)
_K_SHARE = 0.1
"""What an error of a score is worth beside one of V, over what it is worth at most: queries ask along the directions in which keys
differ, which their squares alone do not tell. Attention at 2 bits is off by 0.046, 0.042 and 0.038 on the reference model with 0.2, 0.1 and
0.06, and on smooth random keys by 0.215 and 0.233 with 0.2 and 0.1."""
_LEAST_WEIGHT = 0.1  # of a channel of K, over the layer's: queries that were not seen may ask for it


@dataclass(frozen=True)
class Pca(Calibrated, Placing):
    """Turn the channels of all heads of a layer to their principal components and give each block of eight 0 to 8 bits.

    Components, their steps and their bits are calibrated: bits by dynamic programming over the blocks of K and V together, so that
    attention is off least. A token of V is brought to unit length per head before. Everything counts: a layer takes 16 / `ratio` bits a
    value. `cross+pca:over=model` takes the components of all layers at once.

    Paper: KVTC (ICLR 2026, arXiv 2511.01815). It scales blocks token by token where here steps are calibrated; put `sinks` before it, as
    the paper does, and a byte stage behind it.

    Parameters
    ----------
    over : str
        What has components in common: the channels of a "layer", or of the "model" (behind the transform `cross`).
    ratio : int
        16-bit values over what is stored, 2 to 128: 4 is 4 bits a value.
    k_ratio : int
        The same for K alone, the rest being V's; 0 leaves to calibration what K gets.
    artifact : str
        Digest of the calibrated tables.
    """

    name: ClassVar[str] = "pca"
    traits: ClassVar[Traits] = Traits(is_tp_splittable=False, is_token_granular=True)
    fitted: ClassVar[tuple[str, ...]] = ("over", "ratio", "k_ratio")
    over: str = "layer"
    ratio: int = 4
    k_ratio: int = 0
    artifact: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.over not in OVER or self.ratio not in _RATIOS or self.k_ratio not in (0, *_RATIOS):
            raise InvalidInputError(
                f"pca: over {self.over}, ratio {self.ratio}, k_ratio {self.k_ratio}; choose over in {OVER}, "
                f"ratio within {_RATIOS[0]} and {_RATIOS[-1]}, k_ratio likewise or 0"
            )

    def fit(self, statistics: Statistics) -> Mapping[int, Tables]:
        """Return, per layer or with the first, for k and for v: weight, mean (C,), basis (C, R), step (R,) and widths (R / 8,) uint8."""
        layers = dict(sorted(statistics.layers.items()))
        parts = [list(layers.values())] if self.over == "model" else [[own] for own in layers.values()]
        fitted = dict(zip(layers, [self._fit(part) for part in parts], strict=False))
        rank = max(len(tables[f"{side}.step"]) for tables in fitted.values() for side in "kv")
        return {layer: {name: _padded(name, table, rank) for name, table in tables.items()} for layer, tables in fitted.items()}

    def _fit(self, layers: Sequence[LayerStatistics]) -> Tables:
        """Return the tables of layers whose channels are taken together."""
        weights = {"k": torch.cat([_k_weight(own) for own in layers]), "v": torch.cat([_v_weight(own) for own in layers])}
        n_heads = 1 if self.over == "model" else len(layers[0].v.sample)
        rows = {side: torch.cat([getattr(own, side).sample.transpose(0, 1).flatten(1) for own in layers], 1) for side in "kv"}
        gain = _gain(rows["v"] * weights["v"], n_heads)
        found = {"k": components(rows["k"] * weights["k"], torch.ones(len(gain), 1))}
        found["v"] = components(rows["v"] * weights["v"] / gain, gain.square().mean(1, keepdim=True))
        widths = self._widths(found, {side: len(weights[side]) for side in "kv"}, n_heads)
        return {f"{side}.{name}": t for side in "kv" for name, t in _tables(found[side], weights[side], widths[side]).items()}

    def _widths(self, found: Mapping[str, Components], n_channels: Mapping[str, int], n_gains: int) -> dict[str, list[int]]:
        """Return the bits of each block of K and of V."""
        total = self._nbytes(n_channels["k"] + n_channels["v"], n_gains)
        share = partial(allocate, costs=pca.WIDTHS)
        if self.k_ratio:
            k = share(found["k"].errors, budget=min(total, 2 * n_channels["k"] // self.k_ratio))
            v = share(found["v"].errors, budget=total - sum(pca.WIDTHS[way] for way in k))
        else:
            both = share(torch.cat((found["k"].errors, found["v"].errors)), budget=total)
            k, v = both[: len(found["k"].errors)], both[len(found["k"].errors) :]
        return {"k": [pca.WIDTHS[way] for way in k], "v": [pca.WIDTHS[way] for way in v]}

    def _nbytes(self, n_channels: int, n_gains: int) -> int:
        """Return the bytes of a token's codes where K and V have so many channels together."""
        return max(2 * n_channels // self.ratio - n_gains, 1)

    def layout(self, spec: ChunkSpec) -> Layout:
        """Return v.gain uint8 (L, H, T), and codes uint8 (L, T, bytes) of K and then V."""
        self._check(spec)
        nbytes = self._nbytes(spec.kv_heads * (spec.k_dim + spec.v_dim), spec.kv_heads)
        return {
            "v.gain": ("uint8", (spec.n_layers, spec.kv_heads, spec.n_tokens)),
            "codes": ("uint8", (spec.n_layers, spec.n_tokens, nbytes)),
        }

    def _check(self, spec: ChunkSpec) -> None:
        """Raise InvalidInputError for a chunk of layers taken together where components are a layer's, or the reverse."""
        if self.over == "model" and spec.n_layers != 1:
            raise InvalidInputError("pca:over=model takes all layers at once: put the transform `cross` before it")
        if self.over == "layer" and len(spec.layers) not in (0, spec.n_layers):
            raise InvalidInputError(f"pca has components of each layer, but {len(spec.layers)} are taken at once: write pca:over=model")

    def encode(self, chunk: KVChunk, spec: ChunkSpec) -> Fields:
        """Return the gains of v and all codes."""
        layout = self.layout(spec)
        gain, codes = (torch.zeros(shape, dtype=torch.uint8, device=chunk.k.device) for _, shape in layout.values())
        for n in range(spec.n_layers):
            k_axes, v_axes = (self._axes(side, spec, n, chunk.k.device) for side in "kv")
            gain[n] = pca.gains(chunk.v[n], v_axes.weight)
            codes[n, :, : k_axes.nbytes] = pca.encode(chunk.k[n], k_axes)
            codes[n, :, k_axes.nbytes : k_axes.nbytes + v_axes.nbytes] = pca.encode(chunk.v[n], v_axes, gain[n])
        return {"v.gain": gain, "codes": codes}

    def decode(self, fields: Fields, spec: ChunkSpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Return k and v rounded to the model's dtype."""
        gain, codes = fields["v.gain"], fields["codes"]
        k, v = (
            torch.empty(spec.n_layers, spec.kv_heads, spec.n_tokens, dim, dtype=DTYPES[spec.dtype], device=codes.device)
            for dim in (spec.k_dim, spec.v_dim)
        )
        for n in range(spec.n_layers):
            (k_codes, k_axes), (v_codes, v_axes) = (self._coded(side, codes, spec, n) for side in "kv")
            k[n] = pca.decode(k_codes, k_axes, None, spec.kv_heads, k.dtype)
            v[n] = pca.decode(v_codes, v_axes, gain[n], spec.kv_heads, v.dtype)
        return k, v

    @property
    def is_placed(self) -> bool:
        """Components of all layers are not: they are decoded before any layer is written."""
        return self.over == "layer"

    def check(self, spec: ChunkSpec) -> None:
        """Raise ValueError unless there are axes for every layer, whose codes fill a token at most."""
        room = self._nbytes(spec.kv_heads * (spec.k_dim + spec.v_dim), spec.kv_heads)
        for n in range(spec.n_layers):
            k_axes, v_axes = (self._axes(side, spec, n, torch.device("cpu")) for side in "kv")
            k_axes.check(spec.kv_heads * spec.k_dim)
            v_axes.check(spec.kv_heads * spec.v_dim)
            if k_axes.nbytes + v_axes.nbytes > room:
                raise ValueError(f"widths: {k_axes.nbytes} B of K and {v_axes.nbytes} B of V do not fit into {room} B a token")

    def place(
        self, fields: Fields, spec: ChunkSpec, side: str, turn: place.Turn | None, rows: torch.Tensor, cache: torch.Tensor
    ) -> None:  # fmt: skip
        """Write components turned back, K turned, to rows of a cache, layer by layer."""
        for n in range(spec.n_layers):
            codes, axes = self._coded(side, fields["codes"], spec, n)
            place.write_pca(codes, axes, fields["v.gain"][n] if side == "v" else None, turn, rows, cache[n])

    def _coded(self, side: str, codes: torch.Tensor, spec: ChunkSpec, index: int) -> tuple[torch.Tensor, pca.Axes]:
        """Return the codes of a side of layer `index` of a chunk, and what they are turned by; V's stand behind K's."""
        axes = self._axes(side, spec, index, codes.device)
        start = 0 if side == "k" else self._axes("k", spec, index, codes.device).nbytes
        return codes[index, :, start : start + axes.nbytes], axes

    def _axes(self, side: str, spec: ChunkSpec, index: int, device: torch.device) -> pca.Axes:
        """Return what a side of layer `index` of a chunk is turned by."""
        layer = spec.layers[:1] if self.over == "model" else spec.layers[index : index + 1]
        widths = tuple(width for width in self.table(f"{side}.widths", layer)[0].tolist() if width)
        weight, mean, basis, step = (self.table(f"{side}.{name}", layer, device)[0] for name in ("weight", "mean", "basis", "step"))
        rank = pca.BLOCK * len(widths)
        return pca.Axes(weight, mean, basis[:, :rank], step[:rank], widths)


def _v_weight(own: LayerStatistics) -> torch.Tensor:
    """Return the weight (C,) of V's channels, which brings a layer to unit size."""
    return own.v.square.mean().clamp(min=1e-30).rsqrt().expand(own.v.square.numel())


def _k_weight(own: LayerStatistics) -> torch.Tensor:
    """Return the weights (C,) of K's channels, which make an error of K as large as what it does to the output beside one of V.

    A score is off by q * dk, and a weight that is off by a share moves the output by that share of its way to that value of V.
    """
    spread = (own.v.square - own.v.mean.square()).sum(1).clamp(min=0)  # (H,)
    worth = _K_SHARE * own.q_square * spread[:, None] / own.v.square.mean().clamp(min=1e-30)
    weight = worth.sqrt().flatten()
    usual = weight.square().mean().sqrt()
    return weight.clamp(min=float(_LEAST_WEIGHT * usual)) if usual > 0 else torch.ones_like(weight)


def _gain(y: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Return the gain of every value of weighted rows (N, C), as it is stored."""
    heads = torch.unflatten(y, 1, (n_heads, -1)).transpose(0, 1)  # (heads, N, D)
    stored = pca.gains(heads, torch.ones(y.shape[1]))
    return pca.gain_values(stored.T).repeat_interleave(heads.shape[2], 1)


def _tables(found: Components, weight: torch.Tensor, widths: Sequence[int]) -> Tables:
    """Return the tables of one side: blocks that have bits, by falling width."""
    kept = sorted((block for block, width in enumerate(widths) if width), key=lambda block: -widths[block])
    columns = [pca.BLOCK * block + n for block in kept for n in range(pca.BLOCK)]
    ways = torch.tensor([pca.WIDTHS.index(widths[column // pca.BLOCK]) for column in columns], dtype=torch.int64)
    return {
        "weight": weight,
        "mean": found.mean,
        "basis": found.basis[:, columns],
        "step": found.steps[columns, ways],
        "widths": torch.tensor([widths[block] for block in kept], dtype=torch.uint8),
    }


def _padded(name: str, table: torch.Tensor, rank: int) -> torch.Tensor:
    """Return a table as it is for `rank` components, at least 8: those beyond its own have no bits."""
    rank = max(rank, pca.BLOCK)
    long = {"basis": rank, "step": rank, "widths": rank // pca.BLOCK}.get(name.rpartition(".")[2])
    return table if long is None else torch.nn.functional.pad(table, (0, long - table.shape[-1]))
