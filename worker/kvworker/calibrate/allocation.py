"""Share bytes among blocks of values so that the error left is least."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def allocate(errors: torch.Tensor, costs: Sequence[int], budget: int) -> list[int]:
    """Return for each block which of its ways is taken: least error in sum, with costs in sum of at most `budget`.

    `errors` (B, W) holds the error of block b coded in way w, which costs `costs[w]`; one way costs nothing. Exact, by dynamic programming
    over blocks and what is left; of equal ways the first is taken.
    """
    least, taken = torch.zeros(budget + 1, dtype=torch.float64), []
    for block in errors.double():
        sums = torch.full((len(costs), budget + 1), torch.inf, dtype=torch.float64)
        for way, cost in enumerate(costs):
            if cost <= budget:
                sums[way, cost:] = least[: budget + 1 - cost] + block[way]
        least, ways = sums.min(0)
        taken.append(ways.to(torch.uint8))
    chosen, left = [], budget
    for ways in reversed(taken):
        chosen.append(int(ways[left]))
        left -= costs[chosen[-1]]
    return chosen[::-1]
