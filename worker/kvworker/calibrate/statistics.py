"""What was seen of a model's KV over calibration text, per layer: what calibrated stages are fitted with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, eq=False)
class SideStatistics:
    """K before RoPE, or V, of one layer; all float32.

    Parameters
    ----------
    sample : tensor (H, N, D)
        N tokens drawn evenly from all that were read; row n of every layer and of both sides is the same token.
    low, high, mean, square : tensor (H, D)
        Smallest, largest and mean value of each channel and the mean of its squares, over all tokens.
    """

    sample: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    mean: torch.Tensor
    square: torch.Tensor


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """One layer.

    Parameters
    ----------
    k, v : SideStatistics
    q_square : tensor (H, D)
        Mean squares of the queries' channels, over the query heads that read a KV head and both channels of a rotated pair: the weight of
        squared errors of that channel of K, before RoPE.
    mass, mass_square : tensor (N,)
        The attention, mean over heads, that each sampled token got from the rows of its text: its sum, and the sum of its squares, the
        weight of squared errors of that token's V.
    place : tensor (N,) int64
        The number of each sampled token, ascending: neighbours in a text have numbers that differ by 1, texts lie 64 apart and more.
    k_gram, v_gram : tensor (C, C) or None
        Products of the channels of the weights that make K and V, where the engine tells them.
    """

    k: SideStatistics
    v: SideStatistics
    q_square: torch.Tensor
    mass: torch.Tensor
    mass_square: torch.Tensor
    place: torch.Tensor
    k_gram: torch.Tensor | None = None
    v_gram: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Statistics:
    """All layers of one model, without the first tokens of each text, which attend and are attended to unlike all others.

    Parameters
    ----------
    namespace : bytes
        Of the model identity.
    n_tokens : int
        Tokens that were read.
    layers : mapping of int to LayerStatistics
    probes : mapping of int to tensor (Q, S, D)
        `Study.probes` of the text that was read last.
    """

    namespace: bytes
    n_tokens: int
    layers: Mapping[int, LayerStatistics]
    probes: Mapping[int, torch.Tensor] = field(default_factory=dict)
