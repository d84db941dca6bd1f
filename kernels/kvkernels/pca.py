"""Codes of principal components, as many bits for each as it is worth: after KVTC (arXiv 2511.01815).

The C = H * D channels of one token of one layer, h * D + d in order, are turned into R components by calibrated axes:

    y    = x * weight                                     float32, cut to +-2**40
    gain = root of the mean of y**2 over a head, rounded down to three bits behind the point; 1 on a side that has none
    z    = (y / gain - mean) @ basis                      (R,)
    code = floor(z / step) + 2**(w - 1) within 0 and 2**w - 1, with w the width of the component's block
    x'   = ((code + 1/2 - 2**(w - 1)) * step @ basis.T + mean) * gain / weight, cut to the dtype's largest value

A block is 8 components, so a block of w bits takes w bytes; `widths` fall from block to block, and components of no width are not among
the R. Codes lie along components in little-endian words as `packing` says: (T, sum of widths). A gain is stored as a byte: the exponent
and the first three bits of the mantissa of its float32, less those of 2**-16, so it lies within 2**-16 and 2**16.

Products of matrices take 128 tokens at a time, the last ones filled up with zeros: a token's codes do not depend on how many follow it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from kvkernels import backend
from kvkernels.checks import require, require_value_dtype, require_values
from kvkernels.packing import pack, unpack
from kvkernels.tiles import product

BLOCK = 8
WIDTHS = (0, 1, 2, 3, 4, 5, 6, 8)
BEYOND = 2.0**40  # squares and products of such values are finite
LOWEST_GAIN = (127 - 16) << 3


class Axes(NamedTuple):
    """What one side of a layer is turned by; operators also take its parts as a plain tuple.

    Parameters
    ----------
    weight, mean : tensor (C,) float32
        Weights are positive.
    basis : tensor (C, R) float16
        Axes as columns, the widest first.
    step : tensor (R,) float32
        Above 0.
    widths : tuple of int
        Bits of each block of 8 components, falling, all of WIDTHS but 0.
    """

    weight: torch.Tensor
    mean: torch.Tensor
    basis: torch.Tensor
    step: torch.Tensor
    widths: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of a token's codes."""
        return sum(self.widths)

    def check(self, n_channels: int) -> None:
        """Raise ValueError unless the parts fit each other."""
        rank = BLOCK * len(self.widths)
        if set(self.widths) - set(WIDTHS[1:]) or list(self.widths) != sorted(self.widths, reverse=True):
            raise ValueError(f"widths must fall and be of {WIDTHS[1:]}, got {self.widths}")
        for name, shape, dtype in (
            ("weight", (n_channels,), torch.float32),
            ("mean", (n_channels,), torch.float32),
            ("basis", (n_channels, rank), torch.float16),
            ("step", (rank,), torch.float32),
        ):
            require(name, getattr(self, name), shape, dtype)


def gains(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the gains (H, T) uint8 of x (H, T, D), each over the channels of its head; `weight` is that of the axes."""
    require_values("x", x)
    y = _weighted(x, weight).view(x.shape[1], x.shape[0], -1)
    bits = y.square().mean(-1).sqrt().view(torch.int32) >> 20
    return (bits - LOWEST_GAIN).clamp_(0, 255).to(torch.uint8).T.contiguous()


def gain_values(gain: torch.Tensor) -> torch.Tensor:
    """Return stored gains as float32."""
    return (gain.to(torch.int32) + LOWEST_GAIN << 20).view(torch.float32)


def encode(x: torch.Tensor, axes: Axes, gain: torch.Tensor | None = None) -> torch.Tensor:
    """Return codes (T, bytes) uint8 of x (H, T, D), with gains (H, T) on a side that has them. Raises ValueError where parts do not fit."""
    require_values("x", x)
    kv_heads, n_tokens, dim = x.shape
    axes = Axes(*axes)
    axes.check(kv_heads * dim)
    if gain is not None:
        require("gain", gain, (kv_heads, n_tokens), torch.uint8)
    if not backend.runs_triton(x):
        return reference_encode(x, axes, gain)
    from kvkernels import pca_triton

    return pca_triton.encode(x, axes, gain)


def decode(codes: torch.Tensor, axes: Axes, gain: torch.Tensor | None, kv_heads: int, dtype: torch.dtype) -> torch.Tensor:
    """Return x' (H, T, D) in dtype. Raises ValueError when the parts are not those of such a tensor."""
    require_value_dtype("dtype", dtype)
    axes = Axes(*axes)
    axes.check(len(axes.weight))
    require("codes", codes, (len(codes), axes.nbytes), torch.uint8)
    if gain is not None:
        require("gain", gain, (kv_heads, len(codes)), torch.uint8)
    if not backend.runs_triton(codes):
        return reference_decode(codes, axes, gain, kv_heads, dtype)
    from kvkernels import pca_triton

    return pca_triton.decode(codes, axes, gain, kv_heads, dtype)


def reference_encode(x: torch.Tensor, axes: Axes, gain: torch.Tensor | None) -> torch.Tensor:
    """Encode with torch on any device; see `encode`."""
    y = _weighted(x, axes.weight)
    if gain is not None:
        y = y / gain_values(gain.T).repeat_interleave(x.shape[2], 1)
    steps = (product(y - axes.mean, axes.basis.float()) / axes.step).floor_()
    codes = torch.empty(len(y), axes.nbytes, dtype=torch.uint8, device=x.device)
    for width, components, place in _runs(axes.widths):
        half = 1 << width - 1
        codes[:, place] = pack((steps[:, components] + half).clamp_(0, 2 * half - 1).to(torch.uint8), 2 * half)
    return codes


def reference_decode(codes: torch.Tensor, axes: Axes, gain: torch.Tensor | None, kv_heads: int, dtype: torch.dtype) -> torch.Tensor:
    """Decode with torch on any device; see `decode`."""
    z = torch.empty(len(codes), BLOCK * len(axes.widths), device=codes.device)
    for width, components, place in _runs(axes.widths):
        n_codes = components.stop - components.start
        z[:, components] = unpack(codes[:, place], n_codes, 1 << width).float().add_(0.5 - (1 << width - 1))
    y = product(z * axes.step, axes.basis.float().T) + axes.mean
    if gain is not None:
        y *= gain_values(gain.T).repeat_interleave(y.shape[1] // kv_heads, 1)
    limit = torch.finfo(dtype).max
    return torch.unflatten((y / axes.weight).clamp_(-limit, limit).to(dtype), 1, (kv_heads, -1)).transpose(0, 1)


def _runs(widths: tuple[int, ...]) -> list[tuple[int, slice, slice]]:
    """Return width, components and bytes of each run of blocks of one width."""
    runs, block, byte = [], 0, 0
    for width in sorted(set(widths), reverse=True):
        n_blocks = widths.count(width)
        runs.append((width, slice(BLOCK * block, BLOCK * (block + n_blocks)), slice(byte, byte + width * n_blocks)))
        block, byte = block + n_blocks, byte + width * n_blocks
    return runs


def _weighted(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return y (T, C) of x (H, T, D)."""
    return (x.transpose(0, 1).flatten(1).float() * weight).clamp_(-BEYOND, BEYOND)
