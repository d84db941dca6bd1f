"""Section 5 of proto/FORMAT.md: transforms, and a codec as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tests.golden import second_calibrated, second_quantizers
from tests.golden.second_packings import require
from tests.golden.second_parts import LARGEST, Geometry, Pair, Part, Tables, flat_to_heads, rounded, take

QUANTIZERS = second_quantizers.QUANTIZERS | second_calibrated.QUANTIZERS
Inner = Callable[[list[Part]], list[Pair]]


def restore(stages: Sequence[Mapping[str, Any]], parts: list[Part], artifacts: Mapping[str, Tables]) -> list[Pair]:
    """Undo transforms and the quantizer, which is last: return K and V of every part as float32."""
    if parts[0].geometry.tokens == 0:
        return [(np.zeros(part.geometry.shape("k"), "<f4"), np.zeros(part.geometry.shape("v"), "<f4")) for part in parts]
    (stage, *others), params = stages, stages[0]["params"]
    own = [part._replace(params=params, tables=artifacts.get(params.get("artifact", ""), {})) for part in parts]
    if not others:
        return [(QUANTIZERS[stage["name"]](part, "k"), QUANTIZERS[stage["name"]](part, "v")) for part in own]
    return TRANSFORMS[stage["name"]](own, lambda inner: restore(others, inner, artifacts))


def sinks(parts: list[Part], inner: Inner) -> list[Pair]:
    """Put the first tokens before the others."""
    first, rest = [], []
    for part in parts:
        n = min(part.params["n"], part.geometry.tokens)
        shapes = ((*shape[:2], n, shape[3]) for shape in map(part.geometry.shape, "kv"))
        first.append([take(part, f"sinks.{side}", part.dtype, shape) for side, shape in zip("kv", shapes, strict=True)])
        rest.append(part._replace(geometry=part.geometry._replace(tokens=part.geometry.tokens - n)))
    return [(np.concatenate((own[0], k), 2), np.concatenate((own[1], v), 2)) for own, (k, v) in zip(first, inner(rest), strict=True)]


def cross(parts: list[Part], inner: Inner) -> list[Pair]:
    """Cut one layer with one head into the layers of the model."""
    places = sorted((layer, index, n) for index, part in enumerate(parts) for n, layer in enumerate(part.geometry.layers))
    widths = {side: [math.prod(parts[index].geometry.shape(side)[1::2]) for _, index, _ in places] for side in "kv"}
    whole = Geometry(1, tuple(layer for layer, _, _ in places), 1, parts[0].geometry.tokens, sum(widths["k"]), sum(widths["v"]))
    ((k, v),) = inner([parts[0]._replace(geometry=whole)])
    found = [tuple(np.empty(part.geometry.shape(side), "<f4") for side in "kv") for part in parts]
    for which, (side, x) in enumerate((("k", k), ("v", v))):
        ends = np.cumsum(widths[side])
        for (_, index, n), end, width in zip(places, ends, widths[side], strict=True):
            _, heads, tokens, dim = parts[index].geometry.shape(side)
            found[index][which][n] = x[0, 0, :, end - width : end].reshape(tokens, heads, dim).swapaxes(0, 1)
    return [(k, v) for k, v in found]


def think(parts: list[Part], inner: Inner) -> list[Pair]:
    """Put the means of dropped channels of K in their places."""
    dims = [part.geometry.k_dim - 2 * (part.geometry.k_dim // 2 * part.params["drop"] // 100) for part in parts]
    pairs = inner([part._replace(geometry=part.geometry._replace(k_dim=dim)) for part, dim in zip(parts, dims, strict=True)])
    found = []
    for part, (k, v) in zip(parts, pairs, strict=True):
        whole = np.empty(part.geometry.shape("k"), "<f4")
        for n, (kept, mean) in enumerate(zip(part.table("kept"), part.table("mean"), strict=True)):
            for head in range(whole.shape[1]):
                whole[n, head] = rounded(mean[head], part.dtype)
                whole[n, head][:, kept[head]] = k[n, head]
        found.append((whole, v))
    return found


def think_queries(parts: list[Part], inner: Inner) -> list[Pair]:
    """Put dropped channels of K back as the means that the chunk has, pair by pair."""
    found, taken, narrow = [], [], []
    for part in parts:
        rows, heads, _, dim = part.geometry.shape("k")
        half = dim // 2
        n_dropped = half * part.params["drop"] // 100
        mask, mean = np.zeros((rows, heads, -(-half // 8)), "u1"), np.zeros((rows, heads, 0), "<f4")
        if n_dropped:
            mask = take(part, "think_queries.mask", "uint8", mask.shape)
            mean = take(part, "think_queries.mean", part.dtype, (rows, heads, 2 * n_dropped))
        taken.append((n_dropped, mask, mean))
        narrow.append(part._replace(geometry=part.geometry._replace(k_dim=dim - 2 * n_dropped)))
    for part, (n_dropped, mask, mean), (k, v) in zip(parts, taken, inner(narrow), strict=True):
        half, whole = part.geometry.k_dim // 2, np.empty(part.geometry.shape("k"), "<f4")
        for n, head in np.ndindex(*whole.shape[:2]):
            bits = [int(mask[n, head, j // 8]) >> j % 8 & 1 for j in range(8 * mask.shape[2])]
            require(not n_dropped or (sum(bits[:half]) == half - n_dropped and not any(bits[half:])), "a mask")
            gone = [c for c in range(2 * half) if n_dropped and not bits[c % half]]
            whole[n, head][:, gone] = mean[n, head]
            whole[n, head][:, [c for c in range(whole.shape[3]) if c not in gone]] = k[n, head]
        found.append((whole, v))
    return found


def lorc(parts: list[Part], inner: Inner) -> list[Pair]:
    """Turn latents back."""
    ranks = [{side: max(int(rank[0]) for rank in part.table(f"{side}.rank")) for side in "kv"} for part in parts]
    narrow = [part.geometry._replace(heads=1, k_dim=rank["k"], v_dim=rank["v"]) for part, rank in zip(parts, ranks, strict=True)]
    pairs = inner([part._replace(geometry=geometry) for part, geometry in zip(parts, narrow, strict=True)])
    found = []
    for part, pair in zip(parts, pairs, strict=True):
        sides = []
        for side, z in zip("kv", pair, strict=True):
            tables = zip(part.table(f"{side}.basis"), part.table(f"{side}.mean"), strict=True)
            y = [z[n, 0].astype(float) @ basis[:, : z.shape[3]].astype(float).T + mean for n, (basis, mean) in enumerate(tables)]
            limit = LARGEST[part.dtype]
            sides.append(rounded(flat_to_heads(np.clip(np.stack(y), -limit, limit).astype("<f4"), part.geometry.shape(side)), part.dtype))
        found.append((sides[0], sides[1]))
    return found


TRANSFORMS = {"sinks": sinks, "cross": cross, "think": think, "think_queries": think_queries, "lorc": lorc}
