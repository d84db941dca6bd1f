"""Compute those rows again whose keys and values the prompt changes most, as its first layers show."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from kvstore.core.errors import InvalidInputError
from kvworker.answer.policy import RecomputePolicy, check_ratio, portion, repairable, still_stored, work_share
from kvworker.engine.engine import Change, Generation, Prefill, Segment, always_computed

_PARTS = {"k": (0,), "v": (1,), "kv": (0, 1)}


@dataclass(frozen=True)
class Deviation(RecomputePolicy):
    """Compute all rows up to a check layer, and above it only those that deviate most from what was stored.

    Below the check layer every row is fresh, in it all have fresh keys and values, and above it the others keep their stored ones. A row's
    deviation is its squared distance over its squared length, less what the codec did to its passage: in the first layer keys and values
    before RoPE depend on nothing but the token, so all that differs there is the codec's error. Layers are loaded while the ones below are
    computed.

    Paper: CacheBlend (arXiv 2405.16444), with its gradual filter; the correction for the codec is ours.

    Parameters
    ----------
    ratio : float
        Share of the rows of stored segments that go on to the last layer. 0.15 is the paper's; on the reference model it wins back all that
        reuse loses, and so does 0.05.
    check : int
        The layer in front of which rows are compared, at least 1; what all rows cost grows with it. 1 is the paper's.
    steps : int
        From the check layer on, so many layers narrow the rows down to the ratio, each by the same factor.
    of : str
        "k", "v" (the paper's) or "kv", the sum of both. With the fresh lower layers taken away, so that the choice alone counts, the 5 % of
        rows chosen by kv won back 80 % of the reference model's loss, those by v 4 %.
    """

    name: ClassVar[str] = "deviation"
    ratio: float = 0.15
    check: int = 1
    steps: int = 1
    of: str = "kv"

    def __post_init__(self) -> None:
        check_ratio(self.name, "ratio", self.ratio)
        if self.check < 1 or self.steps < 1:
            raise InvalidInputError(
                f"deviation: check and steps must be at least 1, got {self.check} and {self.steps}; layer 0 never deviates"
            )
        if self.of not in _PARTS:
            raise InvalidInputError(f"deviation: of must be one of {', '.join(_PARTS)}, got {self.of!r}")

    def finish(self, prefill: Prefill) -> Generation:
        """Compute everything up to the check layer, and narrow there."""
        segments = still_stored(prefill)
        passages = repairable(segments)
        rows = sorted({*always_computed(segments), *(row for own in passages for row in own)})
        return prefill.finish(rows, _Filter(passages, self._shares(), _PARTS[self.of]))

    def work(self, segments: Sequence[Segment], n_layers: int) -> list[int]:
        """Return the mean over the layers of the rows that run through them."""
        shares, share, total = self._shares(), 1.0, 0.0
        for layer in range(n_layers):
            share = shares.get(layer, share)
            total += share
        return work_share(segments, total / n_layers)

    def _shares(self) -> dict[int, float]:
        """Return the share of rows that goes on, by check layer."""
        return {self.check + i: self.ratio ** ((i + 1) / self.steps) for i in range(self.steps)}


@dataclass
class _Filter:
    """Keeps the rows that deviate most; a `kvworker.engine.engine.Narrowing` for one prompt."""

    passages: Sequence[range]
    shares: dict[int, float]
    parts: tuple[int, ...]
    noise: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def layers(self) -> Collection[int]:
        """The first layer, to see the codec's error, and the check layers."""
        return {0, *self.shares}

    def keep(self, layer: int, rows: Sequence[int], look: Callable[[], Change]) -> Sequence[int]:
        """Return all rows at the first layer, and at a check layer the share that deviates most."""
        if not rows:
            return rows
        change = look()
        differences = torch.stack([_difference(change.fresh[part], change.stored[part]) for part in self.parts])
        if layer == 0:
            self.noise = self._by_passage(change.rows, differences)
            return rows
        at = torch.tensor(change.rows, device=differences.device)
        scores = (differences - self.noise[:, at]).sum(0)
        n_kept = portion(self.shares[layer], sum(len(own) for own in self.passages))
        chosen = scores.topk(min(n_kept, len(rows))).indices.tolist()
        return [change.rows[i] for i in chosen]

    def _by_passage(self, rows: Sequence[int], differences: torch.Tensor) -> torch.Tensor:
        """Return the mean of the differences (P, S) over each passage, (P, rows of the prompt)."""
        at = torch.tensor(rows, device=differences.device)
        spread = torch.zeros(len(differences), int(at[-1]) + 1, device=differences.device).index_copy_(1, at, differences)
        for own in self.passages:
            spread[:, own.start : own.stop] = spread[:, own.start : own.stop].mean(1, keepdim=True)
        return spread


def _difference(fresh: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    """Return the squared distance of rows (H, S, D) over the squared length of the fresh ones, (S,) float32."""
    return (fresh.float() - stored.float()).square().sum((0, 2)) / fresh.float().square().sum((0, 2)).clamp(min=1e-12)
