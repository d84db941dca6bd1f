"""Entropy coding by rANS with static tables: symbols take about as many bits as their probabilities say.

A block is N symbols in order. Position n is coded with table n % P of its block, by lane n % W, where W = ceil(N / LANE) lanes of one
block run in step, so that an array library does one step of all lanes of all blocks at once. A lane is a number x, 2**16 before its last
symbol is encoded and after it is decoded; f and c are a symbol's frequency and the sum of those before it, of TOTAL = 2**12:

    encode, from the last position to the first    where x >= f * 2**20: emit x % 2**16, x = x // 2**16
                                                    x = x // f * TOTAL + x % f + c
    decode, from the first position to the last    the symbol has c <= x % TOTAL < c + f
                                                    x = f * (x // TOTAL) + x % TOTAL - c
                                                    where x < 2**16: x = x * 2**16 + the next word

A stream is the W numbers x in which the decoder begins, u32, then the words, u16, in the order in which the decoder reads them: by step,
then by lane. All are little-endian. Who decodes needs N and the tables.

Paper: Asymmetric numeral systems (arXiv 1311.2540), the range variant; interleaved as in arXiv 1402.3392.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvstore.core.blob import Buffer
from kvstore.core.errors import FormatError, InvalidInputError

TOTAL = 1 << 12
LANE = 1024
"""Symbols of a lane, which costs 4 bytes: 0.03 bits a symbol."""
_LOW = 1 << 16

Symbols = NDArray[np.uint8]
Frequencies = NDArray[np.uint16]


def frequencies(counts: NDArray[Any]) -> Frequencies:
    """Return uint16 frequencies (..., S) that sum up to TOTAL, none 0, as near to the counts (..., S) as whole numbers come.

    2 to 256 symbols with counts below 2**50; counts that are all 0 give equal frequencies.
    """
    n_symbols = counts.shape[-1]
    weights = counts.astype(np.int64) + (counts.sum(-1, keepdims=True) == 0)
    share = weights * (TOTAL - n_symbols)
    total = weights.sum(-1, keepdims=True)
    whole, rest = share // total, share % total
    missing = TOTAL - n_symbols - whole.sum(-1, keepdims=True)
    rank = np.argsort(np.argsort(-rest, -1, kind="stable"), -1, kind="stable")
    found: Frequencies = (1 + whole + (rank < missing)).astype(np.uint16)
    return found


def encode(symbols: Symbols, tables: Frequencies) -> list[bytes]:
    """Return the stream of each block of symbols (B, N) under tables (B, P, S); raises InvalidInputError for what they do not know."""
    _check(tables, len(symbols))
    if symbols.size and int(symbols.max()) >= tables.shape[-1]:
        raise InvalidInputError(f"rans: symbol {int(symbols.max())} under tables of {tables.shape[-1]} symbols")
    (n_blocks, n_symbols), places = symbols.shape, _places(symbols.shape[1], tables)
    n_steps, n_lanes = len(places), _n_lanes(n_symbols)
    padded = np.zeros((n_blocks, n_steps * n_lanes), np.uint8)
    padded[:, :n_symbols] = symbols
    at = places * tables.shape[-1] + padded.reshape(n_blocks, n_steps, n_lanes).transpose(1, 0, 2)
    frequency, start = tables.astype(np.uint32).take(at), _starts(tables).take(at)  # (steps, B, W)
    state = np.full((n_blocks, n_lanes), _LOW, np.uint32)
    words, emits = np.empty(at.shape, np.uint16), np.zeros(at.shape, bool)
    for step in reversed(range(n_steps)):
        active = slice(0, min(n_lanes, n_symbols - step * n_lanes))
        x, f = state[:, active], frequency[step, :, active]
        emit = np.greater_equal(x, f << 20, out=emits[step, :, active])
        words[step, :, active] = x
        x = x >> emit * np.uint32(16)
        quotient = x // f
        state[:, active] = (quotient << 12) + (x - quotient * f) + start[step, :, active]
    heads = state.astype("<u4")
    return [heads[b].tobytes() + words[:, b][emits[:, b]].astype("<u2").tobytes() for b in range(n_blocks)]


def decode(streams: Sequence[Buffer], n_symbols: int, tables: Frequencies) -> Symbols:
    """Return the symbols (B, N) of B streams; raises FormatError where a stream does not end as an encoder leaves it."""
    _check(tables, len(streams))
    n_lanes, n_kinds, places = _n_lanes(n_symbols), tables.shape[-1], _places(n_symbols, tables)
    state, words, at, last = _open(streams, n_lanes)
    frequency, start, found = tables.astype(np.uint32), _starts(tables), _by_slot(tables)
    out = np.empty((len(streams), n_symbols), np.uint8)
    for step in range(len(places)):
        active = slice(0, min(n_lanes, n_symbols - step * n_lanes))
        x, table = state[:, active], places[step, :, active]
        slot = x & (TOTAL - 1)
        symbol = found.take(table * TOTAL + slot)
        own = table * n_kinds + symbol
        x = frequency.take(own) * (x >> 12) + slot - start.take(own)
        reads = (x < _LOW).astype(np.uint32)
        taken = reads.cumsum(1, dtype=np.int64)
        state[:, active] = x << reads * 16 | words.take(at + taken, mode="clip") * reads
        at += taken[:, -1:]
        out[:, step * n_lanes : step * n_lanes + n_lanes] = symbol
    if (at != last).any() or (state != _LOW).any():
        raise FormatError(f"an entropy coded stream of {n_symbols} symbols is damaged, or was coded with other tables")
    return out


def _open(streams: Sequence[Buffer], n_lanes: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64]]:
    """Return lanes (B, W), the words of all streams, and (B, 1) the places of the words before the first and of the last of each."""
    views = [memoryview(stream).cast("B") for stream in streams]
    for view in views:
        if len(view) < 4 * n_lanes or len(view) % 2:
            raise FormatError(f"an entropy coded stream of {len(view)} B: {n_lanes} lanes take {4 * n_lanes} B, words of 2 B follow")
    heads = np.frombuffer(b"".join([*(view[: 4 * n_lanes] for view in views), b"\0\0\0\0"]), "<u4")[:-1]  # numpy reads no empty buffer
    words = np.frombuffer(b"".join([*(view[4 * n_lanes :] for view in views), b"\0\0"]), "<u2")
    n_words = np.array([[len(view) // 2 - 2 * n_lanes] for view in views], np.int64)
    last = n_words.cumsum(0) - 1
    return heads.astype(np.uint32).reshape(len(views), n_lanes), words.astype(np.uint32), last - n_words, last


def _places(n_symbols: int, tables: Frequencies) -> NDArray[np.int64]:
    """Return, by step, block and lane, the number of a position's table among those of all blocks; none beyond N is used."""
    (n_blocks, period, _), n_lanes = tables.shape, _n_lanes(n_symbols)
    n_steps = -(-n_symbols // max(1, n_lanes))
    own = (np.arange(n_steps * n_lanes) % period).reshape(n_steps, 1, n_lanes)
    places: NDArray[np.int64] = own + np.arange(n_blocks)[:, None] * period
    return places


def _starts(tables: Frequencies) -> NDArray[np.uint32]:
    """Return the sums of the frequencies before each symbol."""
    return np.cumsum(tables, -1, dtype=np.uint32) - tables.astype(np.uint32)


def _by_slot(tables: Frequencies) -> Symbols:
    """Return the symbol of each of the TOTAL remainders, table after table."""
    flat = tables.reshape(-1)
    return np.repeat(np.tile(np.arange(tables.shape[-1], dtype=np.uint8), len(flat) // tables.shape[-1]), flat)


def _n_lanes(n_symbols: int) -> int:
    return -(-n_symbols // LANE)


def _check(tables: Frequencies, n_blocks: int) -> None:
    """Raise InvalidInputError unless every symbol of every table has a frequency and they sum up to TOTAL."""
    shaped = tables.ndim == 3 and len(tables) == n_blocks and tables.shape[1] > 0 and 2 <= tables.shape[2] <= 256
    if not shaped or tables.dtype != np.uint16 or (tables == 0).any() or (tables.sum(-1, dtype=np.int64) != TOTAL).any():
        raise InvalidInputError(f"rans: tables of {n_blocks} blocks are uint16 (B, P, 2 to 256), positive, with sums of {TOTAL}")
