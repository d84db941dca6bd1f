"""Symbols of several layers as byte streams: entropy coded with static tables, or packed plainly where that is no longer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from kvkernels.packing import pack, packed_nbytes, unpack
from kvstore import rans
from kvstore.core.blob import Buffer
from kvstore.core.errors import FormatError
from kvworker.codec.tensor_bytes import bytes_of


def to_streams(symbols: Sequence[torch.Tensor], levels: Sequence[int], tables: rans.Frequencies) -> list[bytes]:
    """Return a stream for each layer's symbols (N, C) uint8 below `levels`, never longer than the packed symbols.

    Tables are uint16 (L, C, S): row c is how frequent symbols of channel c are. A stream as long as the packed symbols is just them.
    """
    coded = [b""] * len(symbols)
    for own in _alike([len(x) for x in symbols]):
        stacked = np.stack([symbols[n].cpu().numpy().reshape(-1) for n in own])
        for n, stream in zip(own, rans.encode(stacked, tables[own]), strict=True):
            coded[n] = stream
    plain = [bytes(bytes_of(pack(x.flatten(), count))) for x, count in zip(symbols, levels, strict=True)]
    return [short if len(short) < len(full) else full for short, full in zip(coded, plain, strict=True)]


def from_streams(streams: Sequence[Buffer], n_rows: Sequence[int], levels: Sequence[int], tables: rans.Frequencies) -> list[torch.Tensor]:
    """Return each layer's symbols (N, C) uint8, on the CPU; raises FormatError for streams that `to_streams` does not make."""
    n_channels = tables.shape[1]
    found = [torch.empty(0, n_channels, dtype=torch.uint8)] * len(streams)
    limits = [packed_nbytes(rows * n_channels, count) for rows, count in zip(n_rows, levels, strict=True)]
    for n, (stream, limit) in enumerate(zip(streams, limits, strict=True)):
        if len(stream) > limit:
            raise FormatError(f"a stream of {len(stream)} B where {limit} B are the most")
        if n_rows[n] and len(stream) == limit:
            packed = torch.frombuffer(bytearray(stream), dtype=torch.uint8)
            found[n] = unpack(packed, n_rows[n] * n_channels, levels[n]).view(-1, n_channels)
    is_coded = [len(stream) < limit for stream, limit in zip(streams, limits, strict=True)]
    for alike in _alike(n_rows):
        if own := [n for n in alike if is_coded[n]]:
            symbols = rans.decode([streams[n] for n in own], n_rows[own[0]] * n_channels, tables[own])
            for n, flat in zip(own, symbols, strict=True):
                found[n] = torch.from_numpy(flat).view(-1, n_channels)
    return found


def _alike(n_rows: Sequence[int]) -> list[list[int]]:
    """Return the numbers of the layers that have equally many rows, together: those are coded in step."""
    return [[n for n, own in enumerate(n_rows) if own == rows] for rows in sorted(set(n_rows))]
