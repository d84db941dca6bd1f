"""What a codec does to K, to V and to what attention makes of them: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from kvstore.core.identity import KVLayout, LayerGroup
from kvworker.chunk import KVChunk, PassageKV
from kvworker.engine.rope import placed

Probes = Mapping[int, torch.Tensor]
"""Queries (Q, S, D) by model layer, before RoPE and scaled, of rows right behind a passage; see `Study.probes`."""


@dataclass(frozen=True)
class Errors:
    """Norms of what is off over norms of what should be: of K before RoPE, of V, and of attention's output per model layer.

    `attention` is empty where there were no probes.
    """

    k: float
    v: float
    attention: Mapping[int, float]

    @property
    def mean_attention(self) -> float:
        """The mean over layers; 0 without any."""
        return sum(self.attention.values()) / max(len(self.attention), 1)

    @property
    def worst_layer(self) -> int | None:
        """The layer whose attention is off most, or None."""
        return max(self.attention, key=lambda layer: self.attention[layer], default=None)


def errors_of(before: PassageKV, after: PassageKV, layout: KVLayout, probes: Probes) -> Errors:
    """Compare a passage with what a codec left of it."""
    k, v = (_relative([getattr(chunk, side) for chunk in after], [getattr(chunk, side) for chunk in before]) for side in ("k", "v"))
    found: dict[int, float] = {}
    for was, now, group in zip(before, after, layout.groups, strict=True):
        for n, layer in enumerate(group.layers):
            if layer in probes:
                full = attention_output(was, n, group, probes[layer])
                found[layer] = _relative([attention_output(now, n, group, probes[layer])], [full])
    return Errors(k, v, found)


def attention_output(chunk: KVChunk, n: int, group: LayerGroup, probes: torch.Tensor) -> torch.Tensor:
    """Return what probes (Q, S, D) right behind a passage read of the n-th layer of a group, (H, Q / H * S, Dv) float32.

    A group with a window is read as far back as the window reaches.
    """
    k, v = chunk.k[n], chunk.v[n].float()
    n_heads, n_tokens, _ = k.shape
    keys = placed(k, group.rope, 0)
    queries = placed(probes.to(k.device), group.rope, n_tokens).reshape(n_heads, -1, k.shape[-1])
    first = max(n_tokens - group.window, 0) if group.window else 0
    weights = (queries @ keys[:, first:].transpose(1, 2)).softmax(-1)
    return weights @ v[:, first:]


def _relative(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """Return the norm of the difference of tensors over the norm of those wanted, in float64; 0 where both are 0."""
    off = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(found, wanted, strict=True))
    norm = sum(float(b.double().square().sum()) for b in wanted)
    return (off / norm) ** 0.5 if norm else float("inf") if off else 0.0
