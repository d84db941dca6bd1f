"""CacheGen's levels: with and without differences, trimmed and not."""

from __future__ import annotations

from kvworker.chunk import DTYPES, ChunkSpec
from tests.contracts.codecs import Case, Sizes

BITS = {8: 3, 16: 4, 32: 5, 64: 6}


def sizes(k_bins: tuple[int, ...], v_bins: tuple[int, ...]) -> Sizes:
    """Return scale, lengths and room of K, then of V, for these bins of the layers: at most what plain codes take."""

    def nbytes(spec: ChunkSpec) -> list[int]:
        found = []
        for dim, bins in ((spec.k_dim, k_bins), (spec.v_dim, v_bins)):
            n_values = spec.n_tokens * spec.kv_heads * dim
            room = sum(-(-n_values * BITS[own] // 8) for own in bins)
            found += [spec.n_layers * spec.n_tokens * DTYPES[spec.dtype].itemsize, 4 * spec.n_layers, room]
        return found

    return nbytes


CASES = (
    Case("cachegen", sizes((32, 16), (32, 16))),
    Case("cachegen:fine=64,coarse=8,delta=off", sizes((64, 8), (64, 8))),
    Case("cachegen:delta=on+trim:fields=streams"),
)
