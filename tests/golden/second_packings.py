"""Section 4 of proto/FORMAT.md: fields that are packed; zstandard is needed only for those that are packed with it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any


class RefusedError(Exception):
    """The bytes are not a chunk of version 1."""


def require(is_right: bool, what: str) -> None:
    """Raise RefusedError unless it is right."""
    if not is_right:
        raise RefusedError(what)


def zstd(data: bytes, n: int, params: dict[str, Any]) -> bytes:
    """Section 4: zstd."""
    import zstandard

    require(zstandard.frame_content_size(data) == n, "size of a frame")
    return zstandard.decompress(data)


def deflate(data: bytes, n: int, params: dict[str, Any]) -> bytes:
    """Section 4: deflate."""
    stream = zlib.decompressobj(wbits=-15)
    raw = stream.decompress(data, n + 1)
    require(stream.eof and not stream.unused_data, "end of a stream")
    return raw


def lz4(data: bytes, n: int, params: dict[str, Any]) -> bytes:
    """Section 4: lz4, a block: sequences of literals and of a match, the last of literals alone."""
    raw, at = bytearray(), 0

    def length(nibble: int) -> int:
        nonlocal at
        more = 255 if nibble == 15 else 0
        while more == 255:
            more, at = data[at], at + 1
            nibble += more
        return nibble

    while at < len(data):
        token, at = data[at], at + 1
        n_literals = length(token >> 4)
        raw += data[at : at + n_literals]
        at += n_literals
        if at == len(data):
            break
        back, at = data[at] | data[at + 1] << 8, at + 2
        require(0 < back <= len(raw), "reach of a match")
        for _ in range(length(token & 15) + 4):
            raw.append(raw[-back])
        require(len(raw) <= n, "size of a block")
    return bytes(raw)


def planes(data: bytes, n: int, params: dict[str, Any]) -> bytes:
    """Section 4: planes."""
    flat, raw, at = zstd(data, n, params), bytearray(n), 0
    for residue in range(params["width"]):
        for place in range(residue, n, params["width"]):
            raw[place], at = flat[at], at + 1
    return bytes(raw)


def top16(data: bytes, n: int, params: dict[str, Any]) -> bytes:
    """Section 4: top16."""
    half = (n + 1) // 2
    raw = bytearray(data[data[16 + i // 2] >> i % 2 * 4 & 15] for i in range(n))
    escapes = data[16 + half :]
    require(len(escapes) % 5 == 0, "escapes")
    last = -1
    for start in range(0, len(escapes), 5):
        place, value = struct.unpack_from("<IB", escapes, start)
        require(last < place < n, "place of an escape")
        raw[place], last = value, place
    return bytes(raw)


def rans(data: bytes, n: int, params: dict[str, Any]) -> bytes:
    """Section 4: rans."""
    n_kinds = data[0] + 1
    frequencies, at, raw = struct.unpack_from(f"<{n_kinds}H", data, 1), 1 + 2 * n_kinds, bytearray()
    while len(raw) < n:
        (nbytes,) = struct.unpack_from("<I", data, at)
        stream, at = data[at + 4 : at + 4 + nbytes], at + 4 + nbytes
        raw += rans_stream(stream, min(1 << 20, n - len(raw)), [frequencies])
    require(at == len(data), "end of the streams")
    return bytes(raw)


def rans_stream(stream: bytes, n: int, tables: Sequence[Sequence[int]]) -> bytes:
    """Section 4: the symbols of a stream, place p with table p % len(tables)."""
    before, symbol_of = [], []
    for frequencies in tables:
        require(len(frequencies) > 1 and sum(frequencies) == 4096 and 0 not in frequencies, "frequencies")
        before.append([sum(frequencies[:s]) for s in range(len(frequencies))])
        symbol_of.append([s for s, frequency in enumerate(frequencies) for _ in range(frequency)])
    width, raw = -(-n // 1024), bytearray()
    x, word = list(struct.unpack_from(f"<{width}I", stream)), 4 * width
    for p in range(n):
        lane, table, r = p % width, p % len(tables), x[p % width] % 4096
        s = symbol_of[table][r]
        x[lane] = tables[table][s] * (x[lane] // 4096) + r - before[table][s]
        if x[lane] < 65536:
            x[lane], word = x[lane] * 65536 + struct.unpack_from("<H", stream, word)[0], word + 2
        raw.append(s)
    require(word == len(stream) and set(x) <= {65536}, "end of a stream")
    return bytes(raw)


def trim(data: bytes, n: int, params: dict[str, Any]) -> bytes:
    """Section 4: trim."""
    n_raw, n_kept = struct.unpack_from("<QQ", data)
    require(n_raw == n and n_kept == len(data) - 16 and n_kept <= n, "size of a trimmed field")
    return data[16:] + bytes(n - n_kept)


UNPACKERS = {"zstd": zstd, "deflate": deflate, "lz4": lz4, "planes": planes, "top16": top16, "rans": rans, "trim": trim}
