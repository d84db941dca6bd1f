"""Tables of golden artifacts: nothing was calibrated, they come from integer arithmetic and have all traits that tables may have.

Where decoding sums up products, factors are small multiples of powers of two, so that sums are exact in whatever order they are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count

import torch

from kvstore.core.identity import KVLayout, LayerGroup
from kvstore.core.stages import Param, StageSpec

Tables = dict[str, torch.Tensor]
Params = Mapping[str, Param]


def numbers(n: int, most: int, seed: int) -> list[int]:
    """Return n integers within 0 and most - 1, a power of two up to 2**14, from a linear congruence."""
    state, found = seed, []
    for _ in range(n):
        state = (1103515245 * state + 12345) % 2**31
        found.append((state >> 17) % most)
    return found


def tables_of(stage: StageSpec, layout: KVLayout) -> dict[int, Tables]:
    """Return the tables of every layer of a model that a stage needs."""
    params, seeds = dict(stage.params), count(100)
    if params.get("over") == "model":
        sides = {side: sum(len(g.layers) * g.kv_heads * _dim(g, side) for g in layout.groups) for side in "kv"}
        return {0: _joined(lambda side: _pca(sides[side], side, next(seeds)))}
    return {
        layer: _TABLES[stage.name](params, group, next(seeds), layer) for group in layout.groups for layer in group.layers
    }  # fmt: skip


def _dim(group: LayerGroup, side: str) -> int:
    """Return the channels of a head."""
    return group.k_dim if side == "k" else group.v_dim


def _joined(of_side: Callable[[str], Tables]) -> Tables:
    """Return the tables of both sides, named by them."""
    return {f"{side}.{name}": table for side in "kv" for name, table in of_side(side).items()}


def _fractions(shape: tuple[int, ...], per_unit: int, most: int, seed: int) -> torch.Tensor:
    """Return multiples of 1 / per_unit within -most / 2 and most / 2, in units of 1 / per_unit."""
    drawn = torch.tensor(numbers(torch.Size(shape).numel(), most, seed), dtype=torch.float32)
    return ((drawn - most // 2) / per_unit).view(shape)


def _skvq(params: Params, group: LayerGroup, seed: int, layer: int) -> Tables:
    def of_side(side: str) -> Tables:
        n_channels = group.kv_heads * _dim(group, side)
        n_groups = -(-n_channels // int(params["group"]))
        groups = torch.tensor([7 * c // 3 % n_groups for c in range(n_channels)])
        return {"groups": groups, "clip": torch.tensor([0.875]), "unit": torch.tensor([2.0 ** (layer - 2)])}

    return _joined(of_side)


def _cq(params: Params, group: LayerGroup, seed: int, layer: int) -> Tables:
    couple, n_vectors = int(params["couple"]), 2 ** int(params["bits"])

    def of_side(side: str) -> Tables:
        n_runs = -(-_dim(group, side) // couple)
        return {"codebooks": _fractions((group.kv_heads, n_runs, n_vectors, couple), 128, 1024, seed + ord(side)).half()}

    return _joined(of_side)


def _kvquant(params: Params, group: LayerGroup, seed: int, layer: int) -> Tables:
    n_channels = group.kv_heads * group.k_dim
    levels = {f"{side}.levels": _levels(2 ** int(params[f"{side}_bits"])) for side in "kv"}
    half = 1 + _fractions((n_channels,), 64, 64, seed)
    half[2] = 0
    return {"k.middle": _fractions((n_channels,), 16, 16, seed + 1), "k.half": 4 * half, **levels}


def _levels(n: int) -> torch.Tensor:
    """Return levels that lie closer around 0, and not alike on either side of it."""
    steps = torch.arange(1 - n, n, 2)
    return (steps * (n + steps.abs())) / (2 * n * n) + 2.0**-8


def _csr(params: Params, group: LayerGroup, seed: int, layer: int) -> Tables:
    def of_side(side: str) -> Tables:
        width = -(-_dim(group, side) // int(params[f"{side}_split"]))
        return {"dictionary": torch.nn.functional.normalize(_fractions((int(params["atoms"]), width), 64, 128, seed + ord(side)))}

    return _joined(of_side)


_WIDTHS = {("k", 12): (4, 2), ("v", 20): (5, 3), ("k", 4): (2, 0), ("v", 4): (1, 0), ("k", 28): (6, 4, 2, 0), ("v", 44): (8, 6, 5, 4)}


def _pca(n_channels: int, side: str, seed: int) -> Tables:
    """Return the tables of one side; widths fill what a ratio of 4 leaves beside the gains, and end with blocks that have none."""
    widths = torch.tensor(_WIDTHS[side, n_channels], dtype=torch.uint8)
    rank = 8 * len(widths)
    return {
        "weight": torch.exp2(torch.tensor(numbers(n_channels, 4, seed)) - 2.0),
        "mean": _fractions((n_channels,), 16, 16, seed + 1),
        "basis": _fractions((n_channels, rank), 4, 8, seed + 2).half(),
        "step": torch.exp2(torch.tensor(numbers(rank, 4, seed + 3)) - 1.0),
        "widths": widths,
    }


def _think(params: Params, group: LayerGroup, seed: int, layer: int) -> Tables:
    half = group.k_dim // 2
    n_pairs = half - half * int(params["drop"]) // 100
    pairs = [sorted((head + layer + n) % half for n in range(n_pairs)) for head in range(group.kv_heads)]
    kept = torch.tensor([sorted([*own, *(pair + half for pair in own)]) for own in pairs])
    return {"kept": kept, "mean": _fractions((group.kv_heads, group.k_dim), 64, 128, seed)}


def _lorc(params: Params, group: LayerGroup, seed: int, layer: int) -> Tables:
    def of_side(side: str) -> Tables:
        n_channels = group.kv_heads * _dim(group, side)
        rank = max(n_channels // 2 - layer, 1)
        basis = _fractions((n_channels, n_channels // 2), 4, 8, seed + ord(side))
        basis[:, rank:] = 0
        return {"mean": _fractions((n_channels,), 16, 16, seed), "basis": basis, "rank": torch.tensor([rank])}

    return _joined(of_side)


def _cachegen(params: Params, group: LayerGroup, seed: int, layer: int) -> Tables:
    half = int(params["coarse" if layer else "fine"]) // 2 - 1

    def of_side(side: str) -> Tables:
        n_channels, n_kinds = group.kv_heads * _dim(group, side), int(params["fine"]) - 1
        slopes = torch.tensor([[max(half + 1 - abs(s - half), 0) for s in range(n_kinds)]] * n_channels)
        table = 1 + slopes * (torch.arange(n_channels)[:, None] % 3 + 1)
        table[:, half] += 4096 - table.sum(1)
        return {"frequencies": table.int(), "half": torch.tensor([half]).int(), "delta": torch.tensor([layer == 1]).int()}

    return _joined(of_side)


_TABLES: dict[str, Callable[[Params, LayerGroup, int, int], Tables]] = {
    "skvq": _skvq,
    "cq": _cq,
    "kvquant": _kvquant,
    "csr": _csr,
    "pca": lambda params, group, seed, layer: _joined(lambda side: _pca(group.kv_heads * _dim(group, side), side, seed + ord(side))),
    "think": _think,
    "lorc": _lorc,
    "cachegen": _cachegen,
}
