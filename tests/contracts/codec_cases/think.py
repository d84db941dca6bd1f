"""ThinK: six of ten channel pairs of K, and V whole; the model's choice, or the chunk's own."""

from __future__ import annotations

from dataclasses import replace

from kvworker.chunk import DTYPES, ChunkSpec
from tests.contracts.codec_cases.lossless import raw
from tests.contracts.codecs import Case


def sizes(spec: ChunkSpec) -> list[int]:
    """Return the bytes of the pairs that stay."""
    return raw(replace(spec, k_dim=spec.k_dim - 2 * (spec.k_dim // 2 * 4 // 10)))


def own_sizes(spec: ChunkSpec) -> list[int]:
    """Return the bytes of a bit per pair, of the means of what was dropped, and of the pairs that stay."""
    heads, dropped = spec.n_layers * spec.kv_heads, 2 * (spec.k_dim // 2 * 4 // 10)
    return [heads * -(-(spec.k_dim // 2) // 8), heads * dropped * DTYPES[spec.dtype].itemsize, *sizes(spec)]


CASES = (
    Case("think+raw", sizes),
    Case("sinks+think:drop=50+kivi:bits=4,group=8"),
    Case("think_queries+raw", own_sizes),
    Case("sinks+think_queries:drop=50+kivi:bits=4,group=8"),
)
