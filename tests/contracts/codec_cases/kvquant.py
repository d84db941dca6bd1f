"""KVQuant: 3 bits, other widths without and with more outliers, and 4 bits behind sinks."""

from __future__ import annotations

from kvworker.chunk import DTYPES, ChunkSpec
from tests.contracts.codecs import Case, Sizes


def sizes(k_bits: int, v_bits: int, outliers: int) -> Sizes:
    """Return codes, numbers and values of outliers of K, then of V, and V's middle and half: per token over the channels of all heads."""

    def nbytes(spec: ChunkSpec) -> list[int]:
        rows, item, found = spec.n_layers * spec.n_tokens, DTYPES[spec.dtype].itemsize, []
        for bits, dim in ((k_bits, spec.k_dim), (v_bits, spec.v_dim)):
            n_channels = spec.kv_heads * dim
            n_kept = max(1, round(n_channels * outliers / 1000)) if outliers else 0
            found += [rows * -(-n_channels * bits // 8)] + [rows * n_kept * n for n in (2, item) if n_kept]
        return [*found, rows * item, rows * item]

    return nbytes


CASES = (
    Case("kvquant", sizes(3, 3, 10)),
    Case("kvquant:k_bits=4,v_bits=2,outliers=0", sizes(4, 2, 0)),
    Case("sinks:n=4+kvquant:k_bits=4,v_bits=4,outliers=30"),
)
