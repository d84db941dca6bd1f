"""Codebooks for vectors: weighted k-means over many small problems at once."""

from __future__ import annotations

import torch

_ROUNDS = 12
_SEED = 0
_LARGEST = 65_504.0  # of float16
_SCORES_AT_ONCE = 1 << 22


def codebooks(points: torch.Tensor, weights: torch.Tensor, n_vectors: int) -> torch.Tensor:
    """Return, for each of B problems with points (B, N, c) float32 that weigh (N,), `n_vectors` vectors (B, n_vectors, c) float16.

    Lloyd's rounds from places that k-means++ draws with a fixed seed: equal points give equal vectors. Points are cut to what float16
    holds. Where there are no more points than vectors, the vectors are the points, the last one repeated.
    """
    points = points.clamp(-_LARGEST, _LARGEST)
    n_points = points.shape[1]
    if n_points <= n_vectors:
        return points[:, torch.arange(n_vectors).clamp(max=n_points - 1)].half()
    many = max(1, _SCORES_AT_ONCE // (n_points * n_vectors))
    return torch.cat([_lloyd(some, weights / weights.mean(), n_vectors) for some in torch.split(points, many)]).half()


def _lloyd(points: torch.Tensor, weights: torch.Tensor, n_vectors: int) -> torch.Tensor:
    """Return vectors (B, n_vectors, c); one that no point is nearest to stays where it is."""
    n_problems, _, width = points.shape
    vectors, each = _spread(points, weights, n_vectors), weights.expand(n_problems, -1)
    for _ in range(_ROUNDS):
        nearest = torch.baddbmm(-vectors.square().sum(-1)[:, None] / 2, points, vectors.mT).argmax(-1)
        mass = torch.zeros(n_problems, n_vectors).scatter_add_(1, nearest, each)[..., None]
        sums = torch.zeros_like(vectors).scatter_add_(1, nearest[..., None].expand(-1, -1, width), points * weights[:, None])
        vectors = torch.where(mass > 0, sums / mass.clamp(min=1e-30), vectors)
    return vectors


def _spread(points: torch.Tensor, weights: torch.Tensor, n_vectors: int) -> torch.Tensor:
    """Return points far from each other (k-means++): each is drawn by its weight times the square of its distance to those before."""
    draw = torch.Generator().manual_seed(_SEED)
    problem = torch.arange(len(points))
    chosen = torch.multinomial(weights.expand(len(points), -1) + 1e-12, 1, generator=draw)[:, 0]
    vectors = [points[problem, chosen]]
    distance = torch.full(points.shape[:2], float("inf"))
    for _ in range(n_vectors - 1):
        distance = torch.minimum(distance, (points - vectors[-1][:, None]).square().sum(-1))
        chosen = torch.multinomial(distance * weights + 1e-12, 1, generator=draw)[:, 0]
        vectors.append(points[problem, chosen])
    return torch.stack(vectors, 1)
