"""What restores every bit: raw values and split exponents."""

from __future__ import annotations

from kvworker.chunk import DTYPES, ChunkSpec
from tests.contracts.codecs import Case


def raw(spec: ChunkSpec) -> list[int]:
    """Return the bytes of K and of V."""
    n = spec.n_layers * spec.kv_heads * spec.n_tokens * DTYPES[spec.dtype].itemsize
    return [n * spec.k_dim, n * spec.v_dim]


def split(spec: ChunkSpec) -> list[int]:
    """Return exponents and the rest of K, then of V."""
    n, rest = spec.n_layers * spec.kv_heads * spec.n_tokens, DTYPES[spec.dtype].itemsize - 1
    return [n * spec.k_dim, n * spec.k_dim * rest, n * spec.v_dim, n * spec.v_dim * rest]


CASES = (Case("raw", raw), Case("exponent_split", split), Case("lossless"))
