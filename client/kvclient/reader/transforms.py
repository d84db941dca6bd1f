"""Transforms and what undoes them; written from section 5 of `proto/FORMAT.md`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kvclient.reader.fields import Fields, Floats, Geometry, Pair, limited, rounded, to_heads, with_axis
from kvclient.reader.steps import Step
from kvstore.core.errors import FormatError
from kvstore.core.stages import Param

Inner = Callable[[], Pair]
"""Decodes what a transform handed on; called once, behind the transform's own fields."""


class Transform(NamedTuple):
    """A transform of single chunks.

    Parameters
    ----------
    inner : callable
        Returns the geometry of what it hands on.
    restore : callable
        Takes its fields and returns K and V of its own geometry.
    params : mapping
        The values that each of its parameters may have.
    """

    inner: Callable[[Geometry, Step], Geometry]
    restore: Callable[[Fields, Geometry, Step, Inner], Pair]
    params: Mapping[str, Sequence[Param]]


def _behind_sinks(geometry: Geometry, step: Step) -> Geometry:
    """Return the geometry of the other tokens."""
    return geometry._replace(n_tokens=max(geometry.n_tokens - step.number("n"), 0))


def _restore_sinks(fields: Fields, geometry: Geometry, step: Step, inner: Inner) -> Pair:
    """Put the first tokens before the others."""
    n_first = min(step.number("n"), geometry.n_tokens)
    first = [fields.floats(f"sinks.{side}", geometry.dtype, with_axis(geometry.shape(side), 2, n_first)) for side in "kv"]
    if n_first == geometry.n_tokens:
        return first[0], first[1]
    k, v = (np.concatenate(pair, 2) for pair in zip(first, inner(), strict=True))
    return k, v


def _behind_think(geometry: Geometry, step: Step) -> Geometry:
    """Return the geometry with fewer channels of K."""
    dim = geometry.k_dim
    return geometry._replace(k_dim=dim - 2 * (dim // 2 * step.number("drop") // 100))


def _restore_think(fields: Fields, geometry: Geometry, step: Step, inner: Inner) -> Pair:
    """Put the means of dropped channels of K in their places."""
    (k, v), (kv_heads, dim) = inner(), (geometry.kv_heads, geometry.k_dim)
    out = np.empty(geometry.shape("k"), np.float32)
    for n, layer in geometry.each_layer():
        kept = step.table(layer, "kept", "int64", (kv_heads, k.shape[3]))
        if kept.min() < 0 or kept.max() >= dim or (np.diff(kept, axis=1) < 1).any():
            raise FormatError(f"channels kept in layer {layer} must ascend within 0 and {dim - 1}")
        out[n] = rounded(step.table(layer, "mean", "float32", (kv_heads, dim)), geometry.dtype)[:, None]
        np.put_along_axis(out[n], kept[:, None], k[n], 2)
    return out, v


def _restore_think_queries(fields: Fields, geometry: Geometry, step: Step, inner: Inner) -> Pair:
    """Put the chunk's own means of dropped channels of K in their places."""
    shape, n_kept = geometry.shape("k"), _behind_think(geometry, step).k_dim
    dim, half = shape[3], shape[3] // 2
    if n_kept == dim:
        return inner()
    mask = fields.take("think_queries.mask", "uint8", (*shape[:2], -(-half // 8)))
    mean = fields.floats("think_queries.mean", geometry.dtype, (*shape[:2], dim - n_kept))
    bits = np.unpackbits(mask, axis=-1, bitorder="little").astype(bool)
    if (bits[..., :half].sum(-1) != n_kept // 2).any() or bits[..., half:].any():
        raise FormatError(f"think_queries.mask keeps {n_kept // 2} of {half} pairs in each head; this one keeps others")
    is_kept = np.concatenate((bits[..., :half], bits[..., :half], np.ones((*shape[:2], dim % 2), bool)), -1)
    k, v = inner()
    out = np.empty((*shape[:2], dim, shape[2]), np.float32)
    out[is_kept] = k.swapaxes(2, 3).reshape(-1, shape[2])
    out[~is_kept] = mean.reshape(-1, 1)
    return np.ascontiguousarray(out.swapaxes(2, 3)), v


def _behind_lorc(geometry: Geometry, step: Step) -> Geometry:
    """Return one head with as many channels as the largest rank of the layers."""
    k_rank, v_rank = (max(_rank(step, layer, side) for _, layer in geometry.each_layer()) for side in "kv")
    return geometry._replace(kv_heads=1, k_dim=k_rank, v_dim=v_rank)


def _rank(step: Step, layer: int, side: str) -> int:
    """Return the rank of a side of a layer; FormatError below 1."""
    rank = int(step.table(layer, f"{side}.rank", "int64", (1,))[0])
    if rank < 1:
        raise FormatError(f"{side}.rank of layer {layer} must be 1 at least, got {rank}")
    return rank


def _restore_lorc(fields: Fields, geometry: Geometry, step: Step, inner: Inner) -> Pair:
    """Turn latents back."""
    k, v = (_from_latents(z, side, geometry, step) for side, z in zip("kv", inner(), strict=True))
    return k, v


def _from_latents(z: Floats, side: str, geometry: Geometry, step: Step) -> Floats:
    """Return K or V of latents (L, 1, T, R); sums are taken in float64."""
    turns = [_turn(step, layer, side, geometry.n_channels(side), z.shape[3]) for _, layer in geometry.each_layer()]
    rows = [own.astype(np.float64) @ basis.T.astype(np.float64) + mean for own, (basis, mean) in zip(z[:, 0], turns, strict=True)]
    return limited(to_heads(np.stack(rows).astype(np.float32), geometry.shape(side)), geometry.dtype)


def _turn(step: Step, layer: int, side: str, n_channels: int, rank: int) -> tuple[Floats, Floats]:
    """Return the first `rank` axes (C, R) of a side of a layer, and its mean (C,); FormatError where there are fewer."""
    basis, mean = (
        step.table(layer, f"{side}.basis", "float32", (n_channels, -1)),
        step.table(layer, f"{side}.mean", "float32", (n_channels,)),
    )
    if basis.shape[1] < rank:
        raise FormatError(f"{side}.basis of layer {layer} has {basis.shape[1]} axes, but {rank} are asked for")
    return basis[:, :rank], mean


TRANSFORMS: dict[str, Transform] = {
    "sinks": Transform(_behind_sinks, _restore_sinks, {"n": range(1, 1025)}),
    "think": Transform(_behind_think, _restore_think, {"drop": range(1, 91)}),
    "think_queries": Transform(_behind_think, _restore_think_queries, {"drop": range(1, 91)}),
    "lorc": Transform(
        _behind_lorc,
        _restore_lorc,
        {"basis": ("activations", "weights"), "most": range(1, 101), "least": range(1, 101), "run": range(1, 65)},
    ),
}

CROSS = "cross"
"""The transform that lays the channels of all layers beside each other; it has neither parameters nor fields."""


def crossed(geometries: Sequence[Geometry]) -> Geometry:
    """Return the geometry of one layer with one head as wide as all."""
    layers = tuple(layer for layer, _, _ in _places(geometries))
    k_dim, v_dim = (sum(len(own.layers) * own.n_channels(side) for own in geometries) for side in "kv")
    return Geometry(layers, 1, 1, geometries[0].n_tokens, k_dim, v_dim, geometries[0].dtype)


def cut(pair: Pair, geometries: Sequence[Geometry]) -> list[Pair]:
    """Return K and V of every layer group from those of `crossed`."""
    sides = [_cut_side(x[0, 0], side, geometries) for side, x in zip("kv", pair, strict=True)]
    return list(zip(*sides, strict=True))


def _cut_side(x: Floats, side: str, geometries: Sequence[Geometry]) -> list[Floats]:
    """Return K or V of every layer group from (T, channels)."""
    found, at = [np.empty(own.shape(side), np.float32) for own in geometries], 0
    for _, group, n in _places(geometries):
        own = geometries[group]
        wide = x[:, at : at + own.n_channels(side)]
        found[group][n] = wide.reshape(own.n_tokens, own.kv_heads, -1).swapaxes(0, 1)
        at += own.n_channels(side)
    return found


def _places(geometries: Sequence[Geometry]) -> list[tuple[int, int, int]]:
    """Return layer, group and row in it of every layer, by ascending model layer."""
    return sorted((layer, group, n) for group, own in enumerate(geometries) for n, layer in enumerate(own.layers))
