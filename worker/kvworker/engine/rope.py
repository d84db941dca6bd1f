"""Rotary embedding from a RopeSpec alone: angles in float64, half-split layout, cast once to the model's dtype.

Angles in float32 are off by 1e-2 at position 128k, so a key rotated there twice by different paths would not agree with itself. All
keys of a request, spliced and computed, take their angles from one table made here.
"""

from __future__ import annotations

import math

import torch

from kvstore.core.errors import UnsupportedError
from kvstore.core.identity import RopeSpec

KINDS = ("default", "linear", "llama3", "yarn")
_LEAST_ROWS = 1024


def frequencies(spec: RopeSpec) -> tuple[torch.Tensor, float]:
    """Return the inverse frequencies (rotary_dim / 2,) in float64 and the factor on cos and sin (1 except for yarn)."""
    params = dict(spec.params)
    plain = spec.theta ** -(torch.arange(0, spec.rotary_dim, 2, dtype=torch.float64) / spec.rotary_dim)
    if spec.kind == "default":
        return plain, 1.0
    if spec.kind == "linear":
        return plain / params["factor"], 1.0
    if spec.kind == "llama3":
        return _llama3(plain, params), 1.0
    if spec.kind == "yarn":
        return _yarn(plain, params, spec), params["attention_factor"]
    raise UnsupportedError(f"rotary embedding {spec.kind!r} is not supported; supported: {', '.join(KINDS)}")


def _llama3(plain: torch.Tensor, params: dict[str, float]) -> torch.Tensor:
    """Divide long waves by the factor, keep short ones, and blend those between."""
    turns = params["original_max_position_embeddings"] * plain / (2 * math.pi)  # full turns over the trained context
    low, high = params["low_freq_factor"], params["high_freq_factor"]
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * (keep + (1 - keep) / params["factor"])


def _yarn(plain: torch.Tensor, params: dict[str, float], spec: RopeSpec) -> torch.Tensor:
    """Interpolate the dimensions that turn slowly, keep those that turn often (YaRN, section 3.2)."""

    def dimension_of(turns: float) -> float:
        return spec.rotary_dim * math.log(params["original_max_position_embeddings"] / (turns * 2 * math.pi)) / (2 * math.log(spec.theta))

    low, high = dimension_of(params["beta_fast"]), dimension_of(params["beta_slow"])
    if params["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0.0), min(high, spec.rotary_dim - 1.0)
    ramp = (torch.arange(len(plain), dtype=torch.float64) - low) / max(high - low, 1e-3)
    interpolate = ramp.clamp(0, 1)
    return plain * (1 - interpolate + interpolate / params["factor"])


class RotaryTable:
    """cos and sin for positions 0, 1, 2, ... of one RopeSpec, grown by doubling.

    Rows are (rotary_dim / 2,): element i serves the pair (i, i + rotary_dim / 2). Not thread-safe.
    """

    def __init__(self, spec: RopeSpec, dtype: torch.dtype, device: torch.device) -> None:
        self._frequencies, self._factor = frequencies(spec)
        self._dtype, self._device = dtype, device
        self._cos = self._sin = torch.empty(0)

    def first(self, n_positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin of positions 0 to n - 1, each (n, rotary_dim / 2); views that must not be written to."""
        if n_positions > len(self._cos):
            self._grow(max(_LEAST_ROWS, 1 << (n_positions - 1).bit_length()))
        return self._cos[:n_positions], self._sin[:n_positions]

    def _grow(self, n_positions: int) -> None:
        angles = torch.outer(torch.arange(n_positions, dtype=torch.float64), self._frequencies)
        self._cos = (angles.cos() * self._factor).to(self._device, self._dtype)
        self._sin = (angles.sin() * self._factor).to(self._device, self._dtype)


def rotate(k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor) -> None:
    """Write the keys (..., T, D) rotated by cos and sin (T, D / 2) to `out`, a tensor of k's shape that does not overlap it."""
    half = k.shape[-1] // 2
    first, second = k[..., :half], k[..., half:]
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)
