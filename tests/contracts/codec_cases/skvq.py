"""SKVQ: 2 bits with float8 parameters, and 3 levels beside 3 bits with float16."""

from __future__ import annotations

from kvworker.chunk import ChunkSpec
from tests.contracts.codecs import Case, Sizes

PER_BYTE = {3: 5, 4: 4, 16: 2}


def sizes(k_levels: int, v_levels: int, group: int, parameter_nbytes: int) -> Sizes:
    """Return codes, scale and zero of K, then of V: per token over the channels of all heads."""

    def nbytes(spec: ChunkSpec) -> list[int]:
        rows, found = spec.n_layers * spec.n_tokens, []
        for levels, dim in ((k_levels, spec.k_dim), (v_levels, spec.v_dim)):
            n_channels = spec.kv_heads * dim
            parameters = rows * -(-n_channels // group) * parameter_nbytes
            codes = -(-n_channels * 3 // 8) if levels == 8 else -(-n_channels // PER_BYTE[levels])
            found += [rows * codes, parameters, parameters]
        return found

    return nbytes


CASES = (
    Case("skvq", sizes(4, 4, 128, 1)),
    Case("skvq:k_levels=8,v_levels=3,group=16,parameters=float16", sizes(8, 3, 16, 2)),
    Case("sinks:n=5+skvq:k_levels=16,v_levels=16,group=32+zstd:fields=codes"),
)
