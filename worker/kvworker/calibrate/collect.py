"""Gather statistics passage by passage, in memory that does not grow with the text."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from kvstore.core.errors import InvalidInputError
from kvstore.core.identity import ModelIdentity
from kvworker.calibrate.statistics import LayerStatistics, SideStatistics, Statistics
from kvworker.engine.engine import Study

N_SAMPLED = 4096
N_SKIPPED = 5
"""First tokens of a text that are left out: attention sinks, whose keys and values are like no other's."""
_TEXTS_APART = 64


class Collector:
    """Takes in the KV of texts and draws an even sample of their tokens, the same for every layer.

    Parameters
    ----------
    n_sampled : int
        Tokens in the sample at most.
    seed : int
        Of the draw.
    """

    def __init__(self, identity: ModelIdentity, n_sampled: int = N_SAMPLED, seed: int = 0) -> None:
        self._identity, self._n_sampled = identity, n_sampled
        self._draw = torch.Generator().manual_seed(seed)
        self._layers = [layer for group in identity.layout.groups for layer in group.layers]
        self._lots = torch.empty(0)
        self._sides = {side: [_Side() for _ in self._layers] for side in "kv"}
        self._mass, self._mass_square = ([torch.empty(0) for _ in self._layers] for _ in range(2))
        self._q_square: dict[int, torch.Tensor] = {}
        self._grams: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._place = torch.empty(0, dtype=torch.int64)
        self._n_tokens = 0
        self._probes: Mapping[int, torch.Tensor] = {}

    def add(self, study: Study) -> None:
        """Take in a text; its first tokens are left out, and a text of no more than those raises InvalidInputError."""
        n_tokens = study.kv[0].spec.n_tokens - N_SKIPPED
        if n_tokens < 1:
            raise InvalidInputError(f"a text to calibrate with needs more than {N_SKIPPED} tokens, got {n_tokens + N_SKIPPED}")
        lots = torch.cat((self._lots, torch.rand(n_tokens, generator=self._draw)))
        kept = lots.argsort(stable=True)[: self._n_sampled].sort().values  # a token stays while its lot is among the lowest
        self._lots = lots[kept]
        tensors = [(chunk.k[n], chunk.v[n]) for chunk in study.kv for n in range(chunk.k.shape[0])]
        for n, (layer, pair) in enumerate(zip(self._layers, tensors, strict=True)):
            for side, x in zip("kv", pair, strict=True):
                self._sides[side][n].add(x[:, N_SKIPPED:].float().cpu(), kept)
            self._mass[n] = torch.cat((self._mass[n], study.mass[layer][N_SKIPPED:]))[kept]
            self._mass_square[n] = torch.cat((self._mass_square[n], study.mass_square[layer][N_SKIPPED:]))[kept]
            self._q_square[layer] = self._q_square.get(layer, torch.zeros(())) + study.q_square[layer] * n_tokens
        self._grams.update(study.grams)
        first = int(self._place[-1]) + _TEXTS_APART if len(self._place) else 0
        self._place = torch.cat((self._place, first + torch.arange(n_tokens)))[kept]
        self._n_tokens += n_tokens
        self._probes = study.probes

    def statistics(self) -> Statistics:
        """Return what was gathered; without any text raises InvalidInputError."""
        if not self._n_tokens:
            raise InvalidInputError("no text was given to calibrate with")
        layers = {
            layer: LayerStatistics(
                self._sides["k"][n].statistics(self._n_tokens),
                self._sides["v"][n].statistics(self._n_tokens),
                self._q_square[layer] / self._n_tokens,
                self._mass[n],
                self._mass_square[n],
                self._place,
                *self._grams.get(layer, ()),
            )
            for n, layer in enumerate(self._layers)
        }
        return Statistics(self._identity.namespace, self._n_tokens, layers, self._probes)


class _Side:
    """K or V of one layer under way."""

    def __init__(self) -> None:
        self._sample: torch.Tensor | None = None

    def add(self, x: torch.Tensor, kept: torch.Tensor) -> None:
        """Take in (H, T, D) float32; `kept` are the places that stay of the sample with these tokens behind it."""
        sums, squares = x.double().sum(1), x.double().square().sum(1)
        if self._sample is None:
            self._sample, self._low, self._high, self._sum, self._squares = x[:, kept], x.amin(1), x.amax(1), sums, squares
            return
        self._sample = torch.cat((self._sample, x), 1)[:, kept]
        self._low, self._high = torch.minimum(self._low, x.amin(1)), torch.maximum(self._high, x.amax(1))
        self._sum, self._squares = self._sum + sums, self._squares + squares

    def statistics(self, n_tokens: int) -> SideStatistics:
        """Return what was gathered over so many tokens."""
        assert self._sample is not None
        return SideStatistics(self._sample, self._low, self._high, (self._sum / n_tokens).float(), (self._squares / n_tokens).float())
