"""CSR: the default, and pieces that do not divide a head."""

from __future__ import annotations

from kvworker.chunk import ChunkSpec
from tests.contracts.codecs import Case, Sizes


def sizes(k_numbers: int, v_numbers: int) -> Sizes:
    """Return atoms and coefficients of K, then of V, 2 bytes each, for so many of a token and head."""

    def nbytes(spec: ChunkSpec) -> list[int]:
        rows = spec.n_layers * spec.kv_heads * spec.n_tokens
        return [2 * rows * n for n in (k_numbers, k_numbers, v_numbers, v_numbers)]

    return nbytes


CASES = (
    Case("csr", sizes(8, 8)),
    Case("csr:k_steps=2,k_split=4,v_steps=3,v_split=1,atoms=16", sizes(8, 3)),
)
