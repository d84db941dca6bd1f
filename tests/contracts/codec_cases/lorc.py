"""LoRC: one head of 60 percent of the channels, in both of two layers."""

from __future__ import annotations

from dataclasses import replace

from kvworker.chunk import ChunkSpec
from tests.contracts.codec_cases.lossless import raw
from tests.contracts.codecs import Case


def sizes(spec: ChunkSpec) -> list[int]:
    """Return the bytes of the latents."""
    k_dim, v_dim = (spec.kv_heads * dim * 60 // 100 for dim in (spec.k_dim, spec.v_dim))
    return raw(replace(spec, kv_heads=1, k_dim=k_dim, v_dim=v_dim))


CASES = (Case("lorc:least=60+raw", sizes), Case("sinks+lorc:basis=activations,run=1+int8"))
