"""Section 5 of proto/FORMAT.md: quantizers with calibrated tables."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tests.golden.second_packings import rans_stream
from tests.golden.second_parts import LARGEST, WORDS, Part, digits, e4m3, flat_to_heads, numbers, rounded, saturated, take, words_nbytes


def skvq(part: Part, side: str) -> np.ndarray:
    """Return (code * scale + zero) * unit."""
    shape, levels = part.geometry.shape(side), part.params[f"{side}_levels"]
    rows, n_channels = (shape[0], shape[2]), shape[1] * shape[3]
    n_groups = -(-n_channels // part.params["group"])
    codes = digits(take(part, f"{side}.codes", "uint8", (*rows, words_nbytes(n_channels, levels))), levels, *WORDS[levels], n_channels)
    is_float8 = part.params["parameters"] == "float8"
    stored = (take(part, f"{side}.{name}", "uint8" if is_float8 else "float16", (*rows, n_groups)) for name in ("scale", "zero"))
    scale, zero = (e4m3(x) if is_float8 else x for x in stored)
    found = [
        (codes[n].astype("<f4") * scale[n][:, groups] + zero[n][:, groups]) * unit
        for n, (groups, unit) in enumerate(zip(part.table(f"{side}.groups"), part.table(f"{side}.unit"), strict=True))
    ]
    return rounded(flat_to_heads(np.stack(found), shape), part.dtype)


def cq(part: Part, side: str) -> np.ndarray:
    """Return the vectors of the codebooks."""
    shape, couple, bits = part.geometry.shape(side), part.params["couple"], part.params["bits"]
    n_runs = -(-shape[3] // couple)
    codes = numbers(take(part, f"{side}.codes", "uint8", (*shape[:3], -(-n_runs * bits // 8))), bits, n_runs)
    found = [
        np.concatenate([books[h, g][codes[n, h, :, g]] for g in range(n_runs)], -1)[:, : shape[3]]
        for n, books in enumerate(part.table(f"{side}.codebooks"))
        for h in range(shape[1])
    ]
    return rounded(np.stack(found).astype("<f4").reshape(shape), part.dtype)


def kvquant(part: Part, side: str) -> np.ndarray:
    """Return level * half + middle, and outliers in their channels."""
    shape, bits, share = part.geometry.shape(side), part.params[f"{side}_bits"], part.params["outliers"]
    rows, n_channels = (shape[0], shape[2]), shape[1] * shape[3]
    n_kept = min(max(round(n_channels * share / 1000), 1), n_channels - 1) if share else 0
    codes = numbers(take(part, f"{side}.codes", "uint8", (*rows, -(-n_channels * bits // 8))), bits, n_channels)
    y = np.stack([levels[own] for levels, own in zip(part.table(f"{side}.levels"), codes, strict=True)])
    if side == "k":
        middle, half = (np.stack(part.table(f"k.{name}"))[:, None] for name in ("middle", "half"))
    where = kept = None
    if n_kept:
        where = take(part, f"{side}.where", "uint8", (*rows, 2 * n_kept)).copy().view("<u2")
        kept = take(part, f"{side}.kept", part.dtype, (*rows, n_kept))
    if side == "v":
        middle, half = (take(part, f"v.{name}", part.dtype, (*rows, 1)) for name in ("middle", "half"))
    x = saturated(y * half + middle, part.dtype)
    if where is not None and kept is not None:
        np.put_along_axis(x, np.minimum(where.astype(int), n_channels - 1), kept, 2)
    return flat_to_heads(x, shape)


def csr(part: Part, side: str) -> np.ndarray:
    """Return sums of coefficients times atoms."""
    shape, steps, split = part.geometry.shape(side), part.params[f"{side}_steps"], part.params[f"{side}_split"]
    n = steps * split
    atoms = take(part, f"{side}.atoms", "uint8", (*shape[:3], 2 * n)).copy().view("<u2").reshape(*shape[:3], split, steps)
    weights = take(part, f"{side}.coefficients", "float16", (*shape[:3], n)).reshape(*shape[:3], split, steps)
    found = []
    for own_atoms, own_weights, dictionary in zip(atoms, weights, part.table(f"{side}.dictionary"), strict=True):
        x = np.zeros((*own_atoms.shape[:3], dictionary.shape[1]), "<f4")
        for step in range(steps):
            x += dictionary[own_atoms[..., step]] * own_weights[..., step, None]
        found.append(x.reshape(*x.shape[:2], -1)[..., : shape[3]])
    return saturated(np.stack(found), part.dtype)


def pca(part: Part, side: str) -> np.ndarray:
    """Return components turned back; the codes of K and V stand in one field."""
    shape, geometry = part.geometry.shape(side), part.geometry
    n_values = shape[1] * (geometry.k_dim + geometry.v_dim)
    nbytes = max(2 * n_values // part.params["ratio"] - shape[1], 1)
    codes = part.fields["codes"][1]
    if side == "v":
        gain = take(part, "v.gain", "uint8", shape[:3])
        codes = take(part, "codes", "uint8", (shape[0], shape[2], nbytes))
    found = []
    for n in range(shape[0]):
        own = part.tables[geometry.layers[n]]
        at = 0 if side == "k" else int(own["k.widths"].sum())
        y = components(codes[n], at, own, side) @ own[f"{side}.basis"][:, : 8 * np.count_nonzero(own[f"{side}.widths"])].astype(float).T
        y = (y + own[f"{side}.mean"]).astype("<f4")
        if side == "v":
            y = y * np.repeat(((gain[n].astype("<u4") + 888) << 20).view("<f4").T, shape[3], 1)
        found.append(np.clip(y / own[f"{side}.weight"], -LARGEST[part.dtype], LARGEST[part.dtype]))
    return rounded(flat_to_heads(np.stack(found), shape), part.dtype)


def components(codes: np.ndarray, at: int, own: Mapping[str, np.ndarray], side: str) -> np.ndarray:
    """Return (code + 1/2 - 2^(w - 1)) * step of the blocks whose codes (T, B) begin at a byte."""
    found = []
    for block, width in enumerate(int(width) for width in own[f"{side}.widths"] if width):
        step = own[f"{side}.step"][8 * block : 8 * block + 8]
        found.append((numbers(codes[:, at : at + width], width, 8) + 0.5 - 2 ** (width - 1)) * step)
        at += width
    return np.concatenate(found, 1)


def cachegen(part: Part, side: str) -> np.ndarray:
    """Return (symbol - half) * (scale / half), and anchors beside them."""
    shape = part.geometry.shape(side)
    n_tokens, n_channels = shape[2], shape[1] * shape[3]
    halves, deltas = ([int(table[0]) for table in part.table(f"{side}.{name}")] for name in ("half", "delta"))
    runs = -(-n_tokens // 10)
    n_symbols = [(n_tokens - runs if delta else n_tokens) * n_channels for delta in deltas]
    plain = [words_nbytes(n, 2 * half + 2) for n, half in zip(n_symbols, halves, strict=True)]
    scale = take(part, f"{side}.scale", part.dtype, (shape[0], n_tokens))
    anchors = iter(take(part, f"{side}.anchors", "uint8", (sum(deltas), runs, n_channels)) if any(deltas) else ())
    nbytes = take(part, f"{side}.nbytes", "int32", (shape[0],))
    streams = take(part, f"{side}.streams", "uint8", (max(1, sum(plain)),)).tobytes()
    found, at = [], 0
    for n, (half, delta) in enumerate(zip(halves, deltas, strict=True)):
        data, at = streams[at : at + nbytes[n]], at + int(nbytes[n])
        if len(data) == plain[n]:
            symbols = digits(np.frombuffer(data, "u1"), 2 * half + 2, *WORDS[2 * half + 2], n_symbols[n])
        else:
            symbols = np.frombuffer(rans_stream(data, n_symbols[n], part.table(f"{side}.frequencies")[n].tolist()), "u1")
        y = symbols.reshape(-1, n_channels).astype("<f4") - half
        if delta:
            is_anchor = np.arange(n_tokens) % 10 == 0
            x = np.repeat((next(anchors).astype("<f4") - 127) * (scale[n][is_anchor] / 127)[:, None], 10, 0)[:n_tokens]
            x[~is_anchor] += y * (scale[n][~is_anchor] / half)[:, None]
        else:
            x = y * (scale[n] / half)[:, None]
        found.append(x)
    return saturated(flat_to_heads(np.stack(found), shape), part.dtype)


QUANTIZERS = {"skvq": skvq, "cq": cq, "kvquant": kvquant, "csr": csr, "pca": pca, "cachegen": cachegen}
