"""CQ: 2 bits, and the widths that do not fill bytes."""

from __future__ import annotations

from kvworker.chunk import ChunkSpec
from tests.contracts.codecs import Case, Sizes


def sizes(couple: int, bits: int) -> Sizes:
    """Return the codes of K and of V: one per run of channels, packed per token and head."""

    def nbytes(spec: ChunkSpec) -> list[int]:
        rows = spec.n_layers * spec.kv_heads * spec.n_tokens
        return [rows * -(-(-(-dim // couple) * bits) // 8) for dim in (spec.k_dim, spec.v_dim)]

    return nbytes


CASES = (
    Case("cq", sizes(4, 8)),
    Case("cq:couple=2,bits=3", sizes(2, 3)),
    Case("cq:couple=8,bits=10", sizes(8, 10)),
)
