"""Rotary embedding from a RopeSpec alone: angles in float64, half-split layout, cast once to the model's dtype.

Angles in float32 are off by 1e-2 at position 128k, so a key rotated there twice by different paths would not agree with itself. All
keys of a request, spliced and computed, take their angles from one table made here.
"""

from __future__ import annotations

import math

import torch

from kvstore.core.errors import UnsupportedError
from kvstore.core.identity import RopeSpec

KINDS = ("default", "linear", "dynamic", "llama3", "yarn")
Rows = slice | torch.Tensor
"""Rows of a prompt: a slice where they are consecutive, else int64 indices (S,)."""
_LEAST_ROWS = 1024


def steady_tokens(spec: RopeSpec | None) -> float:
    """Return up to which length of a sequence its frequencies do not depend on that length; infinite except for dynamic NTK scaling."""
    return dict(spec.params)["original_max_position_embeddings"] if spec and spec.kind == "dynamic" else math.inf


def frequencies(spec: RopeSpec, n_tokens: int = 0) -> tuple[torch.Tensor, float]:
    """Return the inverse frequencies (rotary_dim / 2,) in float64 and the factor on cos and sin (1 except for yarn).

    `n_tokens` is the length of the whole sequence, which matters beyond `steady_tokens`.
    """
    params = dict(spec.params)
    theta = _dynamic_theta(spec, n_tokens) if n_tokens > steady_tokens(spec) else spec.theta
    plain = theta ** -(torch.arange(0, spec.rotary_dim, 2, dtype=torch.float64) / spec.rotary_dim)
    if spec.kind in ("default", "dynamic"):
        return plain, 1.0
    if spec.kind == "linear":
        return plain / params["factor"], 1.0
    if spec.kind == "llama3":
        return _llama3(plain, params), 1.0
    if spec.kind == "yarn":
        return _yarn(plain, params, spec), params["attention_factor"]
    raise UnsupportedError(f"rotary embedding {spec.kind!r} is not supported; supported: {', '.join(KINDS)}")


def _dynamic_theta(spec: RopeSpec, n_tokens: int) -> float:
    """Return the base for a sequence longer than the trained context: the slowest pair turns by as much as if stretched to the factor."""
    factor, stretch = dict(spec.params)["factor"], n_tokens / steady_tokens(spec)
    return float(spec.theta * (factor * stretch - (factor - 1)) ** (spec.rotary_dim / (spec.rotary_dim - 2)))


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

    Rows are (rotary_dim / 2,): element i serves the pair (i, i + rotary_dim / 2). Angles that depend on the sequence's length, those of
    dynamic NTK scaling beyond the trained context, are computed anew for every call. Not thread-safe.
    """

    def __init__(self, spec: RopeSpec, dtype: torch.dtype, device: torch.device) -> None:
        self._spec, self._dtype, self._device = spec, dtype, device
        self._cos = self._sin = torch.empty(0)
        frequencies(spec)  # an unknown kind fails here and not with the first prompt

    def first(self, n_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin of a whole sequence, each (n, rotary_dim / 2); views that must not be written to."""
        return self.angles(slice(0, n_tokens), n_tokens)

    def angles(self, place: Rows, n_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin of the positions `place`, each (S, rotary_dim / 2), in a sequence of n_tokens; not to be written to."""
        if n_tokens > steady_tokens(self._spec):
            return self._turn(torch.arange(n_tokens)[place if isinstance(place, slice) else place.cpu()], n_tokens)
        if n_tokens > len(self._cos):
            self._cos, self._sin = self._turn(torch.arange(max(_LEAST_ROWS, 1 << (n_tokens - 1).bit_length())))
        return self._cos[place], self._sin[place]

    def _turn(self, positions: torch.Tensor, n_tokens: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        own, factor = frequencies(self._spec, n_tokens)
        angles = torch.outer(positions.double(), own)
        return (angles.cos() * factor).to(self._device, self._dtype), (angles.sin() * factor).to(self._device, self._dtype)


def rotate(k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor) -> None:
    """Write the keys (..., T, D) rotated by cos and sin (T, R / 2) to `out`, a tensor of k's shape that does not overlap it.

    Elements behind the first R = rotary_dim of a head carry no position and are copied.
    """
    half = cos.shape[-1]
    first, second = k[..., :half], k[..., half : 2 * half]
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half : 2 * half]).addcmul_(first, sin)
    if 2 * half < k.shape[-1]:
        out[..., 2 * half :] = k[..., 2 * half :]


def placed(x: torch.Tensor, spec: RopeSpec | None, first: int) -> torch.Tensor:
    """Return keys or queries before RoPE (..., S, D) as they stand at positions first, first + 1, ..., in float32.

    Of angles that depend on the length of the sequence it takes those of a short one.
    """
    return x.float() if spec is None else _turned(x.float(), spec, first, 1.0)


def unplaced(x: torch.Tensor, spec: RopeSpec | None, first: int) -> torch.Tensor:
    """Return what `placed` turns into x."""
    return x.float() if spec is None else _turned(x.float(), spec, first, -1.0)


def _turned(x: torch.Tensor, spec: RopeSpec, first: int, sense: float) -> torch.Tensor:
    """Return x turned by the angles of its positions, times `sense`: 1 or -1."""
    own, factor = frequencies(spec)
    angles, factor = sense * torch.outer(torch.arange(first, first + x.shape[-2]).double(), own), factor**sense
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    rotate(x, (angles.cos() * factor).to(x), (angles.sin() * factor).to(x), out)
    return out
