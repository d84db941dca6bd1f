"""ThinK: six of ten channel pairs of K, and V whole."""

from __future__ import annotations

from dataclasses import replace

from kvworker.chunk import ChunkSpec
from tests.contracts.codec_cases.lossless import raw
from tests.contracts.codecs import Case


def sizes(spec: ChunkSpec) -> list[int]:
    """Return the bytes of the pairs that stay."""
    return raw(replace(spec, k_dim=spec.k_dim - 2 * (spec.k_dim // 2 * 4 // 10)))


CASES = (Case("think+raw", sizes), Case("sinks+think:drop=50+kivi:bits=4,group=8"))
