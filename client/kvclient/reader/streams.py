"""Entropy coded streams under static tables; written from packing `rans` in section 4 of `proto/FORMAT.md`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvstore.core.errors import FormatError

_LANE, _TOTAL, _LOW = 1024, 4096, 1 << 16


def decode_stream(data: memoryview, n_symbols: int, tables: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the symbols of a stream, one step of all lanes at a time; that of place p has table p % P of tables (P, S), S at most 256.

    Raises FormatError for tables that are none and for a stream that does not end as it must.
    """
    if (tables < 1).any() or (tables.sum(1) != _TOTAL).any():
        raise FormatError(
            f"frequencies of an entropy coder are positive and sum up to {_TOTAL}, got sums of {np.unique(tables.sum(1))[:8]}"
        )
    n_lanes = -(-n_symbols // _LANE)
    if len(data) < 4 * n_lanes or len(data) % 2:
        raise FormatError(f"a rans stream of {n_symbols} symbols begins with {4 * n_lanes} B, got {len(data)} B")
    x = np.frombuffer(data[: 4 * n_lanes], "<u4").astype(np.int64)
    words = np.frombuffer(data[4 * n_lanes :], "<u2").astype(np.int64)
    n_tables, n_kinds = tables.shape
    of_slot = np.repeat(np.tile(np.arange(n_kinds, dtype=np.uint8), n_tables), tables.ravel()).reshape(n_tables, _TOTAL)
    before = np.cumsum(tables, 1) - tables
    symbols, n_read = np.empty(n_symbols, np.uint8), 0
    for first in range(0, n_symbols, max(n_lanes, 1)):
        own = x[: n_symbols - first]
        table, slot = np.arange(first, first + len(own)) % n_tables, own % _TOTAL
        symbol = of_slot[table, slot]
        symbols[first : first + n_lanes] = symbol
        own[:] = tables[table, symbol] * (own // _TOTAL) + slot - before[table, symbol]
        reads = own < _LOW
        read = words[n_read : n_read + int(reads.sum())]
        if len(read) < reads.sum():
            raise FormatError(f"a rans stream of {n_symbols} symbols ends early")
        own[reads] = own[reads] << 16 | read
        n_read += len(read)
    if n_read != len(words) or (x != _LOW).any():
        raise FormatError(f"a rans stream of {n_symbols} symbols does not end as it must")
    return symbols
