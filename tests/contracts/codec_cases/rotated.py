"""Rotated codes: sizes, and bounds of a vector's length, which a rotation keeps."""

from __future__ import annotations

import torch

from kvworker.chunk import DTYPES, ChunkSpec
from tests.contracts.codecs import UNIT_ROUNDOFF, Bound, Case, Sizes

HADAMARD_PARAMETERS, TURBOQUANT_PARAMETERS = 2, 1


def sizes(k_bits: int, v_bits: int, n_parameters: int) -> Sizes:
    """Return codes and the parameters of K, then of V: per power of two that a head's channels add up to."""

    def nbytes(spec: ChunkSpec) -> list[int]:
        rows, found = spec.n_layers * spec.kv_heads * spec.n_tokens, []
        for bits, dim in ((k_bits, spec.k_dim), (v_bits, spec.v_dim)):
            blocks = [1 << n for n in range(dim.bit_length()) if dim >> n & 1]
            codes = rows * sum(-(-block * bits // 8) for block in blocks)
            found += [codes] + [rows * len(blocks) * DTYPES[spec.dtype].itemsize] * n_parameters
        return found

    return nbytes


def hadamard(bits: int) -> Bound:
    """Return the length of an error of half a step in every coordinate, where a step is at most 2 lengths / levels; the type of zero moves
    the ends of the range."""

    def most(x: torch.Tensor, axis: int, dtype: str) -> torch.Tensor:
        length, n_channels = x.norm(dim=-1, keepdim=True), x.shape[-1]
        in_steps = 1 / (2**bits - 1) + 4 * UNIT_ROUNDOFF[dtype]
        return n_channels**0.5 * (length * in_steps + 15 * 2.0**-24)

    return most


def turboquant(x: torch.Tensor, axis: int, dtype: str) -> torch.Tensor:
    """Return the lengths of the vector and of what it becomes, at most 1.51 times as long, the largest level of 2 bits."""
    return 2.52 * x.norm(dim=-1, keepdim=True) + 2.0**-24


CASES = (
    Case("hadamard", sizes(4, 4, HADAMARD_PARAMETERS), hadamard(4)),
    Case("hadamard:bits=3", sizes(3, 3, HADAMARD_PARAMETERS), hadamard(3)),
    Case("turboquant", sizes(4, 3, TURBOQUANT_PARAMETERS)),
    Case("turboquant:k_bits=2,v_bits=1", sizes(2, 1, TURBOQUANT_PARAMETERS), turboquant),
)
