"""Decode, rotate and write stored codes to their rows of a cache, in one pass over memory: int8, fp8, kivi with 2 or 4 bits, and pca.

What `rotate_scatter.write` does with keys, these do with their codes: values are decoded in float32, keys are rotated in float32, and the
result is rounded once to the cache's dtype (in float16 to at most 65504). Going through decoded keys rounds twice, so the last bit may
differ. Layers and heads are one axis, M = L * H: a cache (L, H, N, D) is passed as its view (M, N, D), so that one launch serves a group.
"""

from __future__ import annotations

import torch

from kvkernels import backend, fp8, int8, kivi, pca, rotate_scatter
from kvkernels.checks import require, require_device, require_value_dtype, require_values
from kvkernels.saturate import saturated

Turn = tuple[torch.Tensor, torch.Tensor]
"""Cosine and sine of the target positions, float32 (T, R) each, as `rotate_scatter` has them."""


def write_values(values: torch.Tensor, turn: Turn | None, rows: torch.Tensor, cache: torch.Tensor) -> None:
    """Write values (M, T, D) as they are; see `write_int8`. `rotate_scatter.write` does this for rows that are all written."""
    require_values("values", values)
    _check(values, values.shape[1], turn, rows, cache)
    if not backend.runs_triton(values):
        return _write(values.float(), turn, rows, cache)
    from kvkernels import place_triton

    return place_triton.write_values(values, turn, rows, cache)


def write_int8(codes: torch.Tensor, scale: torch.Tensor, turn: Turn | None, rows: torch.Tensor, cache: torch.Tensor) -> None:
    """Write what `int8` stored, codes (M, T, D) and scale (M, T, 1), to cache[:, rows] of cache (M, N, D); rotated by `turn` if given.

    `rows` is int64 (T,), each in 0..N-1 and no two alike, or -1 for a token that is not written; any other row fails as in
    `rotate_scatter.write`.
    """
    require("codes", codes, codes.shape, torch.int8)
    require("scale", scale, (*codes.shape[:-1], 1), torch.float32)
    _check(codes, codes.shape[1], turn, rows, cache, scale)
    if not backend.runs_triton(codes):
        return _write(int8.reference_decode(codes, scale, torch.float32), turn, rows, cache)
    from kvkernels import place_triton

    return place_triton.write_int8(codes, scale, turn, rows, cache)


def write_fp8(codes: torch.Tensor, scale: torch.Tensor, turn: Turn | None, rows: torch.Tensor, cache: torch.Tensor) -> None:
    """Write what `fp8` stored, codes (M, T, D) and scale (M,); see `write_int8`."""
    require("codes", codes, codes.shape, torch.uint8)
    require("scale", scale, codes.shape[:1], torch.float32)
    _check(codes, codes.shape[1], turn, rows, cache, scale)
    if not backend.runs_triton(codes):
        return _write(fp8.reference_decode(codes, scale, torch.float32), turn, rows, cache)
    from kvkernels import place_triton

    return place_triton.write_fp8(codes, scale, turn, rows, cache)


def write_kivi(
    parts: kivi.Parts, bits: int, group: int, axis: kivi.Axis, turn: Turn | None, rows: torch.Tensor, cache: torch.Tensor
) -> None:  # fmt: skip
    """Write what `kivi` stored with 2 or 4 bits, codes, scale and zero of (M, T, D); see `write_int8`."""
    codes, scale, zero = parts
    shape = (cache.shape[0], len(rows), cache.shape[-1])
    codes_shape, parameter_shape = kivi.stored_shapes(shape, bits, group, axis)
    if bits == 3:
        raise ValueError("kivi: 3 bits span bytes and are not decoded in place; decode them, then call rotate_scatter.write")
    require_value_dtype("scale", scale.dtype)
    require("codes", codes, codes_shape, torch.uint8)
    require("scale", scale, parameter_shape, scale.dtype)
    require("zero", zero, parameter_shape, scale.dtype)
    _check(codes, len(rows), turn, rows, cache, scale, zero)
    if not backend.runs_triton(codes):
        return _write(kivi.reference_decode(codes, scale, zero, shape, bits, group, axis, torch.float32), turn, rows, cache)
    from kvkernels import place_triton

    return place_triton.write_kivi(parts, bits, group, axis, turn, rows, cache)


def write_pca(
    codes: torch.Tensor, axes: pca.Axes, gain: torch.Tensor | None, turn: Turn | None, rows: torch.Tensor, cache: torch.Tensor
) -> None:  # fmt: skip
    """Write what `pca` stored of one side of one layer, codes (T, B) and gains (M, T), to a cache whose M heads are the layer's."""
    axes = pca.Axes(*axes)
    axes.check(cache.shape[0] * cache.shape[-1])
    require("codes", codes, (len(rows), axes.nbytes), torch.uint8)
    gains = () if gain is None else (gain,)
    for own in gains:
        require("gain", own, (cache.shape[0], len(rows)), torch.uint8)
    _check(codes[None].expand(cache.shape[0], -1, -1), len(rows), turn, rows, cache, *gains, *axes[:4])
    if not backend.runs_triton(codes):
        limit = torch.finfo(cache.dtype).max
        return _write(pca.reference_decode(codes, axes, gain, cache.shape[0], torch.float32).clamp_(-limit, limit), turn, rows, cache)
    from kvkernels import pca_triton

    return pca_triton.write(codes, axes, gain, turn, rows, cache)


def _write(x: torch.Tensor, turn: Turn | None, rows: torch.Tensor, cache: torch.Tensor) -> None:
    """Rotate decoded float32 (M, T, D) and write it, with torch on any device."""
    if turn is not None:
        turned = torch.empty_like(x)
        rotate_scatter.reference_write(x, *turn, torch.arange(x.shape[1], device=x.device), turned)
        x = turned
    is_written = rows != -1
    cache.index_copy_(1, rows[is_written], saturated(x[:, is_written], cache.dtype))


def _check(
    codes: torch.Tensor, n_tokens: int, turn: Turn | None, rows: torch.Tensor, cache: torch.Tensor, *parameters: torch.Tensor
) -> None:
    """Raise unless the tensors fit together and lie on one device."""
    require_value_dtype("cache", cache.dtype)
    if codes.ndim != 3 or cache.ndim != 3 or codes.shape[0] != cache.shape[0]:
        raise ValueError(f"codes {tuple(codes.shape)} and cache {tuple(cache.shape)} are not of (M, T, D) and (M, N, D)")
    require("rows", rows, (n_tokens,), torch.int64)
    for name, table in zip(("cos", "sin"), turn or (), strict=False):
        rotary_dim = table.shape[-1] if table.ndim else 0
        if rotary_dim % 2 or not 0 < rotary_dim <= cache.shape[2]:
            raise ValueError(
                f"{name}: rotary dimension {rotary_dim} is not even and within 2..{cache.shape[2]}, the head dimension of cache"
            )
        require(name, table, (n_tokens, rotary_dim), torch.float32)
    others = (*(("parameter", p) for p in parameters), *(("table", t) for t in turn or ()))
    for name, tensor in (("rows", rows), ("cache", cache), *others):
        require_device(name, tensor, codes)
