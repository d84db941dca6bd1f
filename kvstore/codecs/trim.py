"""Fields without the zeros at their end."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

from kvstore.codecs import ByteStage
from kvstore.core.blob import Buffer
from kvstore.core.errors import FormatError

_HEAD = struct.Struct("<QQ")


@dataclass(frozen=True)
class Trim(ByteStage):
    """Leave out the zero bytes at the end of a field: for methods whose output has no fixed length and is filled up with zeros.

    The frame: the bytes of the field (u64), the bytes that are kept (u64), and those.

    Paper: none.

    Parameters
    ----------
    fields : str
        The last word of the names of the fields to pack; "" packs all.
    """

    name: ClassVar[str] = "trim"
    fields: str = ""

    def pack(self, data: Buffer) -> Buffer:
        """Return the frame."""
        kept = bytes(data).rstrip(b"\0")
        return _HEAD.pack(len(data), len(kept)) + kept

    def unpack(self, data: Buffer, raw_nbytes: int) -> Buffer:
        """Return the bytes filled up with zeros; raises FormatError for what is not such a frame of exactly `raw_nbytes` bytes."""
        view = memoryview(data).cast("B")
        if len(view) < _HEAD.size:
            raise FormatError(f"a trimmed field begins with {_HEAD.size} B, got {len(view)} B")
        declared, n_kept = _HEAD.unpack_from(view)
        if declared != raw_nbytes or n_kept > raw_nbytes or n_kept != len(view) - _HEAD.size:
            raise FormatError(
                f"a trimmed field declares {declared} B, {n_kept} B kept, where {raw_nbytes} B, {len(view) - _HEAD.size} B are"
            )
        return bytes(view[_HEAD.size :]).ljust(raw_nbytes, b"\0")
