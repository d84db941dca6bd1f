"""Principal components of calibration samples, and what each block of them costs and saves at every width."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvkernels.pca import BLOCK, WIDTHS

_REACHES = (1.0, 1.25, 1.5, 1.75, 2.0, 2.3, 2.6, 3.0, 3.5, 4.0, 5.0, 6.5, 9.0)
"""Ends of a quantizer's range tried, over the root mean square of its component."""
_EVERY = 4  # one row in four tells errors, the others the axes: axes fit their own rows too well where channels are many


@dataclass(frozen=True, eq=False)
class Components:
    """Components of one side, the largest first, R of them: a multiple of 8.

    Parameters
    ----------
    mean : tensor (C,)
    basis : tensor (C, R) float16
        Columns beyond the rank of the sample are 0.
    errors : tensor (R / 8, W) float64
        Squared error of a block at each of WIDTHS, mean over tokens.
    steps : tensor (R, W)
        The step that makes it least.
    """

    mean: torch.Tensor
    basis: torch.Tensor
    errors: torch.Tensor
    steps: torch.Tensor


def components(rows: torch.Tensor, weight: torch.Tensor) -> Components:
    """Return the components of rows (N, C), whose squared errors count `weight` (N, 1) times."""
    held_out = torch.arange(len(rows)) % _EVERY == _EVERY - 1 if len(rows) >= 2 * _EVERY else torch.ones(len(rows), dtype=torch.bool)
    seen = ~held_out if len(rows) >= 2 * _EVERY else held_out
    mean = rows.mean(0)
    centred = rows - mean
    basis = _axes((centred * weight.sqrt())[seen])
    basis = torch.nn.functional.pad(basis, (0, -basis.shape[1] % BLOCK)).half()
    errors, steps = _errors(centred[held_out] @ basis.float(), weight[held_out])
    return Components(mean, basis, errors, steps)


def _axes(y: torch.Tensor) -> torch.Tensor:
    """Return the principal axes of y (N, C) as columns (C, min(N, C)), the largest first."""
    y = y.double()
    if len(y) >= y.shape[1]:
        axes: torch.Tensor = torch.linalg.eigh(y.T @ y).eigenvectors
        return axes.flip(1).float()
    values, vectors = torch.linalg.eigh(y @ y.T)
    lengths = values.clamp(min=0).sqrt()
    scale = torch.where(lengths > 1e-6 * lengths.amax(), 1 / lengths.clamp(min=1e-300), 0)
    mixed: torch.Tensor = (y.T @ vectors) * scale
    return mixed.flip(1).float()


def _errors(z: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return errors (R / 8, W) and steps (R, W) of components z (N, R), rows weighed by weight (N, 1)."""
    unit = ((weight * z.square()).mean(0) / weight.mean()).sqrt().clamp(min=1e-20)
    errors, steps = [(weight * z.square()).mean(0)], [unit]
    for width in WIDTHS[1:]:
        tried = torch.tensor(_REACHES)[:, None] * unit * 2.0 ** (1 - width)  # (reaches, R)
        losses = torch.stack([(weight * (_rounded(z, step, width) - z).square()).mean(0) for step in tried])
        best = losses.argmin(0, keepdim=True)
        errors.append(losses.gather(0, best)[0])
        steps.append(tried.gather(0, best)[0])
    return torch.unflatten(torch.stack(errors, 1).double(), 0, (-1, BLOCK)).sum(1), torch.stack(steps, 1)


def _rounded(z: torch.Tensor, step: torch.Tensor, width: int) -> torch.Tensor:
    """Return z as a code of that width gives it back."""
    half = 1 << width - 1
    return (z / step).floor_().clamp_(-half, half - 1).add_(0.5).mul_(step)
