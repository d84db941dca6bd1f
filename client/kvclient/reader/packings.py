"""Unpack the packed fields of stored chunks; written from section 4 of `proto/FORMAT.md`."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from kvclient.reader.streams import decode_stream
from kvstore.core.errors import FormatError, MissingExtraError
from kvstore.core.stages import Param

Bytes = NDArray[np.uint8]
Unpack = Callable[[memoryview, int, Mapping[str, Param]], Bytes]

_MOST_LZ4_NBYTES = 0x7E000000
_RANS_BLOCK = 1 << 20


def unpack(packing: str, params: Mapping[str, Param], data: memoryview, raw_nbytes: int) -> Bytes:
    """Return the raw bytes of a field that a stage of this name and these parameters packed.

    Raises FormatError for anything but `raw_nbytes` bytes, before allocating more, and MissingExtraError where a package is not installed.
    """
    raw = PACKINGS[packing](data, raw_nbytes, params)
    if len(raw) != raw_nbytes:
        raise FormatError(f"a field packed as {packing} needs {raw_nbytes} B, got {len(raw)} B")
    return raw


def _zstd(data: memoryview, raw_nbytes: int, params: Mapping[str, Param]) -> Bytes:
    """Read a Zstandard frame."""
    zstandard = _package("zstandard", "zstd", "store")
    try:
        declared = zstandard.frame_content_size(data)
        if declared != raw_nbytes:
            raise FormatError(f"a field needs a zstd frame of {raw_nbytes} B; this one declares {declared} B")
        return _array(zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False))
    except zstandard.ZstdError as error:
        raise FormatError(f"{len(data)} B are not one zstd frame: {error}") from error


def _deflate(data: memoryview, raw_nbytes: int, params: Mapping[str, Param]) -> Bytes:
    """Read a bare DEFLATE stream."""
    stream = zlib.decompressobj(-15)
    try:
        raw = stream.decompress(data, raw_nbytes + 1)
    except zlib.error as error:
        raise FormatError(f"{len(data)} B are not one DEFLATE stream: {error}") from error
    if not stream.eof or stream.unused_data:
        raise FormatError(f"{len(data)} B are not one DEFLATE stream of {raw_nbytes} B")
    return _array(raw)


def _lz4(data: memoryview, raw_nbytes: int, params: Mapping[str, Param]) -> Bytes:
    """Read an LZ4 block."""
    block = _package("lz4.block", "lz4", "lz4")
    if raw_nbytes > _MOST_LZ4_NBYTES:
        raise FormatError(f"an lz4 block holds {_MOST_LZ4_NBYTES} B at most, not {raw_nbytes} B")
    try:
        return _array(block.decompress(data, uncompressed_size=raw_nbytes))
    except block.LZ4BlockError as error:
        raise FormatError(f"{len(data)} B are not one lz4 block of {raw_nbytes} B: {error}") from error


def _planes(data: memoryview, raw_nbytes: int, params: Mapping[str, Param]) -> Bytes:
    """Put the bytes of each item together again."""
    width = params.get("width")
    if not isinstance(width, int) or width not in (2, 4, 8):
        raise FormatError(f"planes have a width of 2, 4 or 8, got {width!r}")
    order = np.concatenate([np.arange(i, raw_nbytes, width) for i in range(width)])
    planes = _zstd(data, raw_nbytes, params)
    raw = np.empty(raw_nbytes, np.uint8)
    raw[order] = planes
    return raw


def _top16(data: memoryview, raw_nbytes: int, params: Mapping[str, Param]) -> Bytes:
    """Look indices up and put escaped bytes in their places."""
    n_halves = -(-raw_nbytes // 2)
    n_escapes, rest = divmod(len(data) - 16 - n_halves, 5)
    if n_escapes < 0 or rest:
        raise FormatError(f"{len(data)} B are no top16 frame of {raw_nbytes} B")
    table, halves, escapes = np.split(_array(data), (16, 16 + n_halves))
    raw: Bytes = table[np.stack((halves & 15, halves >> 4), 1).ravel()[:raw_nbytes]]
    by_escape = escapes.reshape(n_escapes, 5)
    place = by_escape[:, :4].astype(np.int64) @ (1 << np.arange(0, 32, 8))
    if n_escapes and (place[-1] >= raw_nbytes or (np.diff(place) < 1).any()):
        raise FormatError("the escapes of a top16 frame are not ascending places in it")
    raw[place] = by_escape[:, 4]
    return raw


def _rans(data: memoryview, raw_nbytes: int, params: Mapping[str, Param]) -> Bytes:
    """Read the table, then stream after stream."""
    n_kinds = data[0] + 1 if len(data) else 0
    at = 1 + 2 * n_kinds
    if n_kinds < 2 or len(data) < at:
        raise FormatError(f"{len(data)} B have no room for the table of a rans frame")
    frequencies = np.frombuffer(data[1:at], "<u2").astype(np.int64)[None]
    blocks = [np.empty(0, np.uint8)]
    for start in range(0, raw_nbytes, _RANS_BLOCK):
        stop = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if stop > len(data):
            raise FormatError(f"a rans frame of {len(data)} B ends before its stream at {at} does")
        blocks.append(decode_stream(data[at + 4 : stop], min(_RANS_BLOCK, raw_nbytes - start), frequencies))
        at = stop
    if at != len(data):
        raise FormatError(f"{len(data) - at} B follow a rans frame of {raw_nbytes} B")
    return np.concatenate(blocks)


def _trim(data: memoryview, raw_nbytes: int, params: Mapping[str, Param]) -> Bytes:
    """Fill the bytes up with zeros."""
    n_raw, n_kept = (int.from_bytes(data[at : at + 8], "little") for at in (0, 8))
    if len(data) < 16 or n_raw != raw_nbytes or n_kept != len(data) - 16 or n_kept > raw_nbytes:
        raise FormatError(f"a trimmed field of {len(data)} B says that {n_kept} B of {n_raw} B are kept, where {raw_nbytes} B are due")
    raw = np.zeros(raw_nbytes, np.uint8)
    raw[:n_kept] = _array(data[16:])
    return raw


def _array(data: bytes | memoryview) -> Bytes:
    return np.frombuffer(data, np.uint8)


def _package(module: str, packing: str, extra: str) -> ModuleType:
    """Import what unpacks."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"this chunk is packed with {packing}: pip install 'kv-larder[{extra}]'") from error


PACKINGS: dict[str, Unpack] = {
    "zstd": _zstd,
    "deflate": _deflate,
    "lz4": _lz4,
    "planes": _planes,
    "top16": _top16,
    "rans": _rans,
    "trim": _trim,
}
"""What can be unpacked here."""
