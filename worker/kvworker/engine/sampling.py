"""How the next token is chosen from logits: greedy, or drawn from a seeded generator."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvstore.core.errors import InvalidInputError


@dataclass(frozen=True)
class Sampling:
    """How many tokens to generate and how to draw them.

    Parameters
    ----------
    max_new_tokens : int
        At least 1; the model's context may end a generation earlier.
    temperature : float
        0 takes the likeliest token; otherwise logits are divided by it.
    top_p : float
        Draw from the fewest likeliest tokens whose probabilities sum to at least this; within (0, 1].
    seed : int
        The same seed, logits and parameters draw the same tokens on one kind of device.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InvalidInputError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise InvalidInputError(f"temperature must be 0 or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InvalidInputError(f"top_p must be above 0 and at most 1, got {self.top_p}")


class Sampler:
    """Draws the tokens of one generation; holds the state of its random generator."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator().manual_seed(sampling.seed)

    def choose(self, logits: torch.Tensor) -> int:
        """Return the next token id for logits (V,)."""
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        probabilities = torch.softmax(logits.float().cpu() / self._sampling.temperature, -1)
        likeliest, order = probabilities.sort(descending=True, stable=True)
        before = likeliest.cumsum(-1) - likeliest
        likeliest[before >= self._sampling.top_p] = 0  # the first token stays: nothing comes before it
        return int(order[torch.multinomial(likeliest, 1, generator=self._generator)])
