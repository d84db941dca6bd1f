"""rANS over bytes with a table of its own: as small as single bytes without their neighbours can become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kvstore import rans
from kvstore.codecs import ByteStage
from kvstore.core.blob import Buffer
from kvstore.core.errors import FormatError, InvalidInputError

_BLOCK = 1 << 20
"""Bytes that are coded at once: arrays of a step hold one number for each of 1,024 lanes, and memory stays within some 40 MiB."""


@dataclass(frozen=True)
class Rans(ByteStage):
    """Pack a field by how often each byte value occurs in it.

    The frame: S - 1 (1 B), with S one more than the largest value, and 2 at least; S frequencies (u16) that sum up to 4096; then, for each
    1,048,576 B of the field, the last block shorter, the length of its stream (u32) and its stream; see `kvstore.rans`.

    Paper: Asymmetric numeral systems (arXiv 1311.2540).

    Parameters
    ----------
    fields : str
        The last word of the names of the fields to pack; "" packs all.
    """

    name: ClassVar[str] = "rans"
    fields: str = ""

    def pack(self, data: Buffer) -> Buffer:
        """Return table and streams."""
        values = np.frombuffer(data, np.uint8)
        n_kinds = max(int(values.max(initial=0)) + 1, 2)
        table = rans.frequencies(np.bincount(values, minlength=n_kinds))
        parts = [bytes([n_kinds - 1]), table.astype("<u2").tobytes()]
        for start in range(0, len(values), _BLOCK):
            (stream,) = rans.encode(values[None, start : start + _BLOCK], table[None, None])
            parts += [len(stream).to_bytes(4, "little"), stream]
        return b"".join(parts)

    def unpack(self, data: Buffer, raw_nbytes: int) -> Buffer:
        """Return exactly `raw_nbytes` bytes; raises FormatError for what is not such a frame."""
        view, out = memoryview(data).cast("B"), bytearray(raw_nbytes)
        n_kinds = view[0] + 1 if len(view) else 0
        at = 1 + 2 * n_kinds
        if len(view) < at:
            raise FormatError(f"a rans frame of {len(view)} B has no room for its table of {n_kinds} values")
        table = np.frombuffer(view[1:at], "<u2").astype(np.uint16)
        for start in range(0, raw_nbytes, _BLOCK):
            stop = at + 4 + int.from_bytes(view[at : at + 4], "little")
            if stop > len(view):
                raise FormatError(f"a rans frame of {len(view)} B ends before its stream at {at} does")
            out[start : start + _BLOCK] = _decoded(view[at + 4 : stop], min(_BLOCK, raw_nbytes - start), table)
            at = stop
        if at != len(view):
            raise FormatError(f"{len(view) - at} B follow a rans frame of {raw_nbytes} B")
        return out


def _decoded(stream: memoryview, n_values: int, table: rans.Frequencies) -> bytes:
    """Return the bytes of one block."""
    try:
        return rans.decode([stream], n_values, table[None, None]).tobytes()
    except InvalidInputError as error:
        raise FormatError(f"the table of a rans frame is none: {error}") from error
