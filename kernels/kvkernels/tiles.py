"""Products of matrices whose rows come out alike whatever stands below them."""

from __future__ import annotations

import torch

TILE = 128


def product(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Return x (N, M) @ matrix (M, P), 128 rows at a time, the last ones filled up with zeros.

    How a library sums up depends on the shape that it is given; so the codes of a token depend on its place, but not on how many follow.
    """
    out = x.new_empty(len(x), matrix.shape[1])
    for start in range(0, len(x), TILE):
        rows = x[start : start + TILE]
        out[start : start + TILE] = (torch.nn.functional.pad(rows, (0, 0, 0, TILE - len(rows))) @ matrix)[: len(rows)]
    return out
