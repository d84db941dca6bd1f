"""Dictionaries of atoms that calibration vectors are sums of few of."""

from __future__ import annotations

import torch

from kvkernels import csr
from kvkernels.saturate import FLOAT16_LARGEST

_ROUNDS = 5
_SEED = 0
_MOST_PIECES = 8192


def dictionary(pieces: torch.Tensor, n_atoms: int, steps: int) -> torch.Tensor:
    """Return atoms (n_atoms, W) float32 of length 1 for pieces (P, W) float32 that are coded in `steps` steps; equal pieces, equal atoms.

    Atoms begin as pieces that are drawn evenly. In a round every piece is coded, and every atom then moves to where the pieces that use
    it would have it, each by the square of its coefficient (the first step of K-SVD's power iteration). An atom that none uses stays.
    """
    draw = torch.Generator().manual_seed(_SEED)
    pieces = pieces.clamp(-FLOAT16_LARGEST, FLOAT16_LARGEST)
    order = torch.randperm(len(pieces), generator=draw)
    atoms = _of_length_one(pieces[order[torch.arange(n_atoms) % len(order)]])
    if len(pieces) <= n_atoms:
        return atoms
    seen = pieces[order[:_MOST_PIECES]]
    for _ in range(_ROUNDS):
        used, weight, rest = csr.pursue(seen, atoms, steps)
        pull, mass = torch.zeros_like(atoms), torch.zeros(n_atoms)
        for own, by in zip(used.T, weight.float().T, strict=True):
            pull.index_add_(0, own, by[:, None] * rest)
            mass.index_add_(0, own, by.square())
        atoms = torch.where(mass[:, None] > 0, _of_length_one(atoms * mass[:, None] + pull), atoms)
    return atoms


def _of_length_one(x: torch.Tensor) -> torch.Tensor:
    """Return rows of length 1; a row of zeros becomes the first axis."""
    norm = x.norm(dim=1, keepdim=True)
    axis = torch.zeros_like(x)
    axis[:, 0] = 1
    return torch.where(norm > 0, x / norm.clamp(min=1e-30), axis)
