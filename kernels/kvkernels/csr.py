"""Vectors as sums of a few atoms: CSR (AAAI 2025, arXiv 2412.11741).

The D channels of a head are cut into `split` pieces of ceil(D / split) channels, the last one filled up with zeros. A piece x is written
with the atoms d of a dictionary (N, ceil(D / split)), rows of length 1, by matching pursuit. `steps` times, from the residual R = x:

    atom        = argmax |R . d|                    the first of those
    coefficient = R . d, rounded to float16         at most its largest value
    R           = R - coefficient * d

    x'          = sum of coefficient * d            float32, in the order of the steps, then rounded to the dtype asked for

Stored are atoms, as int16 in little-endian bytes, and coefficients, both (L, H, T, split * steps): 32 * split * steps / D bits a value.
|R|**2 falls by the square of the coefficient in every step, but for the rounding of the coefficient.
"""

from __future__ import annotations

import torch

from kvkernels.checks import require, require_device, require_value_dtype, require_values
from kvkernels.saturate import FLOAT16_LARGEST, saturated

MOST_ATOMS = 1 << 15
_PIECES_AT_ONCE = 256


def encode(x: torch.Tensor, dictionaries: torch.Tensor, split: int, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return atoms uint8 (L, H, T, 2 * split * steps) and coefficients float16 (L, H, T, split * steps) of x (L, H, T, D).

    `dictionaries` (L, N, ceil(D / split)) is float32.
    """
    require_values("x", x)
    _check(dictionaries, len(x), x.shape[-1], split)
    require_device("dictionaries", dictionaries, x)
    n_layers, kv_heads, n_tokens, _ = x.shape
    atoms = torch.empty(n_layers, kv_heads * n_tokens * split, steps, dtype=torch.int16, device=x.device)
    coefficients = torch.empty(atoms.shape, dtype=torch.float16, device=x.device)
    for layer in range(n_layers):
        pieces = pieces_of(x[layer], split)
        for start in range(0, len(pieces), _PIECES_AT_ONCE):
            some = pieces[start : start + _PIECES_AT_ONCE].clamp(-FLOAT16_LARGEST, FLOAT16_LARGEST)
            n_some = len(some)  # filled up to one size, so that a piece's sums do not depend on those behind it
            filled = torch.nn.functional.pad(some, (0, 0, 0, _PIECES_AT_ONCE - n_some))
            found, weights, _ = pursue(filled, dictionaries[layer], steps)
            atoms[layer, start : start + n_some] = found[:n_some]
            coefficients[layer, start : start + n_some] = weights[:n_some]
    shape = (n_layers, kv_heads, n_tokens, split * steps)
    return atoms.view(shape).view(torch.uint8), coefficients.view(shape)


def decode(
    atoms: torch.Tensor, coefficients: torch.Tensor, dictionaries: torch.Tensor, dim: int, split: int, dtype: torch.dtype
) -> torch.Tensor:
    """Return x' (L, H, T, D) in dtype. Raises ValueError for parts that do not fit; an atom beyond the dictionary is its last one."""
    require_value_dtype("dtype", dtype)
    _check(dictionaries, len(coefficients), dim, split)
    require("coefficients", coefficients, coefficients.shape, torch.float16)
    require("atoms", atoms, (*coefficients.shape[:3], 2 * coefficients.shape[3]), torch.uint8)
    n_layers, kv_heads, n_tokens, _ = coefficients.shape
    numbers = (atoms.contiguous().view(torch.int16).long() & 0xFFFF).clamp_(max=dictionaries.shape[1] - 1)
    out = torch.empty(n_layers, kv_heads, n_tokens, dim, dtype=dtype, device=atoms.device)
    for layer in range(n_layers):
        number, weight = (part[layer].reshape(kv_heads, n_tokens, split, -1) for part in (numbers, coefficients))
        x = torch.zeros((*number.shape[:3], dictionaries.shape[2]), device=atoms.device)
        for step in range(number.shape[3]):
            x += dictionaries[layer][number[..., step]] * weight[..., step, None].float()
        out[layer] = saturated(x.flatten(2)[..., :dim], dtype)
    return out


def pieces_of(x: torch.Tensor, split: int) -> torch.Tensor:
    """Return x (H, T, D) as float32 pieces (H * T * split, ceil(D / split))."""
    width = -(-x.shape[-1] // split)
    return torch.nn.functional.pad(x.float(), (0, width * split - x.shape[-1])).reshape(-1, width)


def pursue(x: torch.Tensor, dictionary: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the atoms int64 and the coefficients float16 (P, steps) of pieces (P, W), and what is left of them (P, W)."""
    rest, atoms, coefficients = x.clone(), [], []
    for _ in range(steps):
        likeness = rest @ dictionary.T
        best = likeness.abs().argmax(1)
        own = saturated(likeness.gather(1, best[:, None]), torch.float16)
        rest -= dictionary[best] * own.float()
        atoms.append(best)
        coefficients.append(own[:, 0])
    return torch.stack(atoms, 1), torch.stack(coefficients, 1), rest


def _check(dictionaries: torch.Tensor, n_layers: int, dim: int, split: int) -> None:
    """Raise unless there is a dictionary for the pieces of every layer."""
    n_atoms = dictionaries.shape[1]
    require("dictionaries", dictionaries, (n_layers, n_atoms, -(-dim // split)), torch.float32)
    if not 1 <= n_atoms <= MOST_ATOMS:
        raise ValueError(f"dictionaries: 1 to {MOST_ATOMS} atoms, got {n_atoms}")
