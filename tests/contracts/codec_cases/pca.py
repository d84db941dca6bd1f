"""PCA: 4 bits a value and 8 for K alone, everything counted, and all layers together."""

from __future__ import annotations

from kvworker.chunk import ChunkSpec
from tests.contracts.codecs import Case, Sizes


def sizes(ratio: int) -> Sizes:
    """Return gains, one byte per token and head, and codes that fill up the rest."""

    def nbytes(spec: ChunkSpec) -> list[int]:
        rows, per_token = spec.n_layers * spec.n_tokens, spec.kv_heads * (spec.k_dim + spec.v_dim)
        return [rows * spec.kv_heads, rows * (2 * per_token // ratio - spec.kv_heads)]

    return nbytes


CASES = (
    Case("pca", sizes(4)),
    Case("pca:ratio=8,k_ratio=3", sizes(8)),
    Case("sinks:n=5+cross+pca:over=model,ratio=16+zstd:fields=codes"),
)
