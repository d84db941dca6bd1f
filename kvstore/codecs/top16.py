"""Four bits for each of the sixteen commonest byte values, and a list of the others: nearly a fixed length, as GPUs like it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kvstore.codecs import ByteStage
from kvstore.core.blob import Buffer
from kvstore.core.errors import FormatError, InvalidInputError

_KINDS = 16
_ESCAPE = np.dtype([("place", "<u4"), ("value", "u1")])
_MOST_NBYTES = 1 << 32


@dataclass(frozen=True)
class Top16(ByteStage):
    """Pack a field of bytes, as the exponents of bfloat16, into 4-bit indices of a table of 16 values, and escapes.

    The frame: the table (16 B, the commonest value first, ties by value), then ceil(N / 2) B with the index of byte 2 i in the low half
    of byte i and that of byte 2 i + 1 in the high half, 0 for escaped bytes; then, to the end, 5 B for each escaped byte: its place
    (u32) and its value, places ascending. Where a tenth of the bytes are escapes it is no smaller than raw, and the field stays raw.

    Paper: SplitZip (arXiv 2605.01708), with the table of the chunk itself instead of a calibrated one.

    Parameters
    ----------
    fields : str
        The last word of the names of the fields to pack; "" packs all.
    """

    name: ClassVar[str] = "top16"
    fields: str = "exponent"

    def pack(self, data: Buffer) -> Buffer:
        """Return table, indices and escapes; a field of 4 GiB or more raises InvalidInputError."""
        values = np.frombuffer(data, np.uint8)
        if len(values) >= _MOST_NBYTES:
            raise InvalidInputError(f"top16 packs less than {_MOST_NBYTES} B, got {len(values)} B; use zstd")
        counts = np.bincount(values, minlength=256)
        table = np.argsort(-counts, kind="stable")[:_KINDS].astype(np.uint8)
        index = np.full(256, _KINDS, np.uint8)
        index[table] = np.arange(_KINDS, dtype=np.uint8)
        codes = index[values]
        places = np.flatnonzero(codes == _KINDS)
        codes[places] = 0
        escapes = np.empty(len(places), _ESCAPE)
        escapes["place"], escapes["value"] = places, values[places]
        low, high = codes[0::2], codes[1::2]
        packed = low.copy()
        packed[: len(high)] |= high << 4
        return table.tobytes() + packed.tobytes() + escapes.tobytes()

    def unpack(self, data: Buffer, raw_nbytes: int) -> Buffer:
        """Return exactly `raw_nbytes` bytes; raises FormatError for a frame of another length, and for escapes out of place."""
        stored = np.frombuffer(data, np.uint8)
        head = _KINDS + -(-raw_nbytes // 2)
        if len(stored) < head or (len(stored) - head) % _ESCAPE.itemsize:
            raise FormatError(f"a top16 frame of {raw_nbytes} B has {head} B and 5 B for each escape, got {len(stored)} B")
        escapes = np.frombuffer(data, _ESCAPE, offset=head)
        places = escapes["place"].astype(np.int64)
        if len(places) and (int(places[-1]) >= raw_nbytes or (np.diff(places) <= 0).any()):
            raise FormatError(f"the escapes of a top16 frame of {raw_nbytes} B are not ascending places in it")
        table, packed = stored[:_KINDS], stored[_KINDS:head]
        out = np.empty(raw_nbytes, np.uint8)
        out[0::2], out[1::2] = table[packed & 15], table[packed[: raw_nbytes // 2] >> 4]
        out[places] = escapes["value"]
        return out.data
