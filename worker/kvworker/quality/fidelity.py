"""How close one next-token distribution is to another: pure."""

from __future__ import annotations

import torch


def divergence(full: torch.Tensor, logits: torch.Tensor) -> float:
    """Return KL(full || other) in nats of the distributions behind two logit vectors (V,)."""
    p, q = (torch.log_softmax(x.double(), -1) for x in (full, logits))
    return max(0.0, float((p.exp() * (p - q)).sum()))


def overlap(full: torch.Tensor, logits: torch.Tensor) -> float:
    """Return how much probability two distributions put on the same tokens: 1 minus their total variation distance."""
    p, q = (torch.softmax(x.double(), -1) for x in (full, logits))
    return float(torch.minimum(p, q).sum())


def agrees(full: torch.Tensor, logits: torch.Tensor) -> bool:
    """Tell whether both choose the same token."""
    return bool(full.argmax() == logits.argmax())
