"""Quantizers with calibrated tables; written from section 5 of `proto/FORMAT.md`.

Tables come from outside as chunks do: kinds and shapes are checked where a table is taken, and what indexes by its values checks those.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvclient.reader.fields import (
    Fields,
    Floats,
    Geometry,
    Pair,
    Shape,
    codes,
    codes_nbytes,
    limited,
    numbers,
    rounded,
    saturated,
    to_heads,
)
from kvclient.reader.quantizers import E4M3, Catalogue, by_side
from kvclient.reader.steps import Step
from kvclient.reader.streams import decode_stream
from kvstore.core.errors import FormatError

_RUN, _ANCHOR = 10, 127
_BINS = (8, 16, 32, 64)
_BLOCK, _MOST_WIDTH = 8, 8


def _skvq(fields: Fields, side: str, geometry: Geometry, step: Step) -> Floats:
    """Return (code * scale + zero) * unit."""
    shape, levels, n_channels = geometry.shape(side), step.number(f"{side}_levels"), geometry.n_channels(side)
    rows, n_groups = (shape[0], shape[2]), -(-n_channels // step.number("group"))
    packed = fields.take(f"{side}.codes", "uint8", (*rows, codes_nbytes(n_channels, levels)))
    scale, zero = (_parameters(fields, f"{side}.{name}", step, (*rows, n_groups)) for name in ("scale", "zero"))
    out = np.empty((*rows, n_channels), np.float32)
    for n, layer in geometry.each_layer():
        groups, unit = step.table(layer, f"{side}.groups", "int64", (n_channels,)), step.table(layer, f"{side}.unit", "float32", (1,))
        if groups.min() < 0 or groups.max() >= n_groups:
            raise FormatError(f"{side}.groups of layer {layer} must lie within 0 and {n_groups - 1}, got {groups.min()} to {groups.max()}")
        out[n] = (codes(packed[n], levels, n_channels) * scale[n][:, groups] + zero[n][:, groups]) * unit
    return rounded(to_heads(out, shape), geometry.dtype)


def _parameters(fields: Fields, name: str, step: Step, shape: Shape) -> Floats:
    """Return scales or zeros of groups."""
    if step.params["parameters"] == "float16":
        return fields.floats(name, "float16", shape)
    found: Floats = E4M3[fields.take(name, "uint8", shape)]
    return found


def _cq(fields: Fields, side: str, geometry: Geometry, step: Step) -> Floats:
    """Return the vectors of the codebooks, less what goes beyond a head."""
    shape, couple, bits = geometry.shape(side), step.number("couple"), step.number("bits")
    kv_heads, dim, n_runs = shape[1], shape[3], -(-shape[3] // couple)
    packed = fields.take(f"{side}.codes", "uint8", (*shape[:3], -(-n_runs * bits // 8)))
    out = np.empty(shape, np.float32)
    for n, layer in geometry.each_layer():
        books = step.table(layer, f"{side}.codebooks", "float16", (kv_heads, n_runs, 2**bits, couple))
        runs = books[np.arange(kv_heads)[:, None, None], np.arange(n_runs), numbers(packed[n], bits, n_runs)]  # (H, T, G, couple)
        out[n] = runs.reshape(*shape[1:3], -1)[..., :dim]
    return rounded(out, geometry.dtype)


class _Outliers(NamedTuple):
    """The channels (L, T, N) and the values (L, T, N) of outliers."""

    channels: NDArray[Any]
    values: Floats


def _kvquant(fields: Fields, side: str, geometry: Geometry, step: Step) -> Floats:
    """Return level * half + middle, and outliers in their channels."""
    shape, bits, n_channels = geometry.shape(side), step.number(f"{side}_bits"), geometry.n_channels(side)
    rows = (shape[0], shape[2])
    packed = fields.take(f"{side}.codes", "uint8", (*rows, -(-n_channels * bits // 8)))
    outliers = _outliers(fields, side, geometry, step.number("outliers"))
    ranges = [fields.floats(f"v.{name}", geometry.dtype, (*rows, 1)) for name in ("middle", "half")] if side == "v" else []
    out = np.empty((*rows, n_channels), np.float32)
    for n, layer in geometry.each_layer():
        levels = step.table(layer, f"{side}.levels", "float32", (2**bits,))
        middle, half = (
            (own[n] for own in ranges)
            if ranges
            else (step.table(layer, f"k.{name}", "float32", (n_channels,)) for name in ("middle", "half"))
        )
        out[n] = saturated(levels[numbers(packed[n], bits, n_channels)] * half + middle, geometry.dtype)
    if outliers is not None:
        np.put_along_axis(out, outliers.channels, outliers.values, 2)
    return to_heads(out, shape)


def _outliers(fields: Fields, side: str, geometry: Geometry, share: int) -> _Outliers | None:
    """Return the outliers of every token, so many of a thousand channels; None where there are none."""
    rows, n_channels = (geometry.n_rows, geometry.n_tokens), geometry.n_channels(side)
    n_kept = min(max(1, round(n_channels * share / 1000)), n_channels - 1) if share else 0
    if not n_kept:
        return None
    where = fields.take(f"{side}.where", "uint8", (*rows, 2 * n_kept)).view("<u2")
    kept = fields.floats(f"{side}.kept", geometry.dtype, (*rows, n_kept))
    return _Outliers(np.minimum(where.astype(np.int64), n_channels - 1), kept)


def _csr(fields: Fields, side: str, geometry: Geometry, step: Step) -> Floats:
    """Return sums of coefficients times atoms, in the order of the steps."""
    shape, split, n_steps = geometry.shape(side), step.number(f"{side}_split"), step.number(f"{side}_steps")
    dim, pieces = shape[3], (*shape[:3], split, n_steps)
    atoms = fields.take(f"{side}.atoms", "uint8", (*shape[:3], 2 * split * n_steps)).view("<u2").reshape(pieces)
    weights = fields.floats(f"{side}.coefficients", "float16", (*shape[:3], split * n_steps)).reshape(pieces)
    found = []
    for n, layer in geometry.each_layer():
        dictionary = step.table(layer, f"{side}.dictionary", "float32", (-1, -(-dim // split)))
        x = np.zeros((*shape[1:3], split, dictionary.shape[1]), np.float32)
        for own in range(n_steps):
            x += dictionary[np.minimum(atoms[n, ..., own], len(dictionary) - 1)] * weights[n, ..., own, None]
        found.append(x.reshape(*shape[1:3], -1)[..., :dim])
    return saturated(np.stack(found), geometry.dtype)


class _Axes(NamedTuple):
    """What a side of a layer is turned back by: R components, those of width 0 left out."""

    weight: Floats
    mean: Floats
    basis: NDArray[np.float16]
    steps: Floats
    widths: tuple[int, ...]


def _pca(fields: Fields, geometry: Geometry, step: Step) -> Pair:
    """Return components turned back; codes of V stand behind those of K."""
    n_rows, kv_heads, n_tokens, _ = geometry.shape("k")
    nbytes = max(2 * (geometry.n_channels("k") + geometry.n_channels("v")) // step.number("ratio") - kv_heads, 1)
    gain_bytes = fields.take("v.gain", "uint8", (n_rows, kv_heads, n_tokens))
    packed = fields.take("codes", "uint8", (n_rows, n_tokens, nbytes))
    k, v = (np.empty((n_rows, n_tokens, geometry.n_channels(side)), np.float32) for side in "kv")
    for n, layer in _component_layers(geometry, step):
        k_axes, v_axes = (_axes(step, layer, side, geometry.n_channels(side)) for side in "kv")
        end = sum(k_axes.widths)
        if end + sum(v_axes.widths) > nbytes:
            raise FormatError(f"widths: {end} B of K and {sum(v_axes.widths)} B of V do not fit into {nbytes} B a token")
        gain = np.repeat(((gain_bytes[n].astype(np.uint32) + 888) << 20).view(np.float32).T, geometry.v_dim, 1)  # (T, C)
        k[n] = _turned_back(packed[n], k_axes) / k_axes.weight
        v[n] = _turned_back(packed[n, :, end:], v_axes) * gain / v_axes.weight
    return (
        limited(to_heads(k, geometry.shape("k")), geometry.dtype),
        limited(to_heads(v, geometry.shape("v")), geometry.dtype),
    )


def _component_layers(geometry: Geometry, step: Step) -> Sequence[tuple[int, int]]:
    """Return rows and the layers whose tables they have: those of the first layer where one row is all layers."""
    if step.params["over"] == "layer":
        return list(geometry.each_layer())
    if geometry.n_rows != 1:
        raise FormatError(f"components of all layers are not those of {geometry.n_rows} layers apart")
    return [(0, geometry.layers[0])]


def _axes(step: Step, layer: int, side: str, n_channels: int) -> _Axes:
    """Return the axes of a side of a layer; FormatError where widths rise or are more than a byte."""
    widths = step.table(layer, f"{side}.widths", "uint8", (-1,)).tolist()
    if widths != sorted(widths, reverse=True) or widths[0] > _MOST_WIDTH:
        raise FormatError(f"{side}.widths of layer {layer} must fall from {_MOST_WIDTH} at most, got {widths[:16]}")
    rank, used = _BLOCK * len(widths), [width for width in widths if width]
    weight, mean = (step.table(layer, f"{side}.{name}", "float32", (n_channels,)) for name in ("weight", "mean"))
    basis = step.table(layer, f"{side}.basis", "float16", (n_channels, rank))[:, : _BLOCK * len(used)]
    return _Axes(weight, mean, basis, step.table(layer, f"{side}.step", "float32", (rank,))[: _BLOCK * len(used)], tuple(used))


def _turned_back(packed: NDArray[np.uint8], axes: _Axes) -> Floats:
    """Return values (T, C) of codes that begin each row of bytes (T, B); sums are taken in float64."""
    z, at, first = np.empty((len(packed), len(axes.steps)), np.float32), 0, 0
    for width, blocks in groupby(axes.widths):
        n_blocks = len(list(blocks))
        n_codes, nbytes = _BLOCK * n_blocks, width * n_blocks
        z[:, first : first + n_codes] = numbers(packed[:, at : at + nbytes], width, n_codes) + np.float32(0.5 - (1 << width - 1))
        first, at = first + n_codes, at + nbytes
    y: Floats = ((z * axes.steps).astype(np.float64) @ axes.basis.T.astype(np.float64) + axes.mean).astype(np.float32)
    return y


def _cachegen(fields: Fields, side: str, geometry: Geometry, step: Step) -> Floats:
    """Return (symbol - half) * (scale / half), with anchors below those of their runs."""
    shape, n_channels, tables = geometry.shape(side), geometry.n_channels(side), _levels_of(step, geometry, side)
    n_anchors = -(-shape[2] // _RUN)
    n_symbols = [(shape[2] - n_anchors if own.is_delta else shape[2]) * n_channels for own in tables]
    most = [codes_nbytes(n, own.n_levels) for n, own in zip(n_symbols, tables, strict=True)]
    scale, n_delta = fields.floats(f"{side}.scale", geometry.dtype, (shape[0], shape[2])), sum(own.is_delta for own in tables)
    anchors = iter(fields.take(f"{side}.anchors", "uint8", (n_delta, n_anchors, n_channels)) if n_delta else ())
    lengths = fields.take(f"{side}.nbytes", "int32", (shape[0],)).astype(np.int64)
    if (lengths < 0).any() or (lengths > most).any():
        raise FormatError(f"streams of {lengths.tolist()} B where {most} B are the most")
    streams, at = fields.take(f"{side}.streams", "uint8", (max(1, sum(most)),)), 0
    out = np.empty((shape[0], shape[2], n_channels), np.float32)
    for n, own in enumerate(tables):
        stream, at = streams[at : at + lengths[n]], at + int(lengths[n])
        is_plain = lengths[n] == most[n]
        symbols = codes(stream, own.n_levels, n_symbols[n]) if is_plain else decode_stream(stream.data, n_symbols[n], own.frequencies)
        coded = symbols.reshape(-1, n_channels)
        out[n] = _beside_anchors(next(anchors), coded, scale[n], own.half) if own.is_delta else _scaled(coded, scale[n], own.half)
    return saturated(to_heads(out, shape), geometry.dtype)


class _Levels(NamedTuple):
    """How a side of a layer is rounded: to 2 * half + 1 symbols, of tokens or of differences, with how frequent each is by channel."""

    half: int
    is_delta: bool
    frequencies: NDArray[np.int64]

    @property
    def n_levels(self) -> int:
        """The levels that plain codes are packed with."""
        return 2 * self.half + 2


def _levels_of(step: Step, geometry: Geometry, side: str) -> list[_Levels]:
    """Return the levels of every layer; FormatError for a number of them that no writer has."""
    found, n_kinds = [], step.number("fine") - 1
    for _, layer in geometry.each_layer():
        half, delta = (int(step.table(layer, f"{side}.{name}", "int32", (1,))[0]) for name in ("half", "delta"))
        if 2 * half + 2 not in _BINS or 2 * half + 1 > n_kinds or delta not in (0, 1):
            raise FormatError(f"{side}.half and {side}.delta of layer {layer} are {half} and {delta}, of {n_kinds} symbols")
        frequencies = step.table(layer, f"{side}.frequencies", "int32", (geometry.n_channels(side), n_kinds))
        found.append(_Levels(half, delta == 1, frequencies.astype(np.int64)))
    return found


def _scaled(symbols: NDArray[Any], scale: Floats, half: int) -> Floats:
    """Return the values (T, C) of symbols under scales (T,)."""
    values: Floats = (symbols.astype(np.float32) - np.float32(half)) * (scale / np.float32(half))[:, None]
    return values


def _beside_anchors(anchors: NDArray[np.uint8], symbols: NDArray[Any], scale: Floats, half: int) -> Floats:
    """Return the values (T, C) of anchors, and of the differences to them."""
    is_anchor = np.arange(len(scale)) % _RUN == 0
    x: Floats = np.repeat(_scaled(anchors, scale[is_anchor], _ANCHOR), _RUN, 0)[: len(scale)]
    x[~is_anchor] += _scaled(symbols, scale[~is_anchor], half)
    return x


CALIBRATED: Catalogue = {
    "skvq": (
        by_side(_skvq),
        {
            "k_levels": (3, 4, 8, 16),
            "v_levels": (3, 4, 8, 16),
            "group": (16, 32, 64, 128, 256),
            "parameters": ("float8", "float16"),
        },
    ),
    "cq": (by_side(_cq), {"couple": (1, 2, 4, 8), "bits": (1, 2, 3, 4, 5, 6, 8, 10)}),
    "kvquant": (by_side(_kvquant), {"k_bits": (2, 3, 4), "v_bits": (2, 3, 4), "outliers": range(101)}),
    "csr": (
        by_side(_csr),
        {
            "k_steps": range(1, 65),
            "v_steps": range(1, 65),
            "k_split": (1, 2, 4),
            "v_split": (1, 2, 4),
            "atoms": range(16, 32_769),
        },
    ),
    "pca": (_pca, {"over": ("layer", "model"), "ratio": range(2, 129), "k_ratio": (0, *range(2, 129))}),
    "cachegen": (by_side(_cachegen), {"fine": _BINS, "coarse": _BINS, "delta": ("auto", "off", "on")}),
}
