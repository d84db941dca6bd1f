"""Byte planes: the first bytes of all items, then the second ones, packed by Zstandard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvstore.codecs import ByteStage
from kvstore.codecs.zstd import Zstd
from kvstore.core.blob import Buffer
from kvstore.core.errors import InvalidInputError

_WIDTHS = (2, 4, 8)


@dataclass(frozen=True)
class Planes(ByteStage):
    """Pack the bytes of a field plane by plane into one Zstandard frame: of floats, the plane with the exponents is far from uniform.

    Byte i of an item stands in plane i; the bytes behind the last whole item end the planes that they belong to.

    Paper: none; the shuffle of HDF5 and Blosc.

    Parameters
    ----------
    fields : str
        The last word of the names of the fields to pack; "" packs all.
    width : int
        Bytes of an item: 2, 4 or 8.
    level : int
        1 to 19, of Zstandard.
    """

    name: ClassVar[str] = "planes"
    fields: str = ""
    width: int = 2
    level: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width not in _WIDTHS:
            raise InvalidInputError(f"planes: width must be one of {_WIDTHS}, got {self.width}")
        Zstd(level=self.level)

    def pack(self, data: Buffer) -> Buffer:
        """Return one frame; raises MissingExtraError without the zstandard package."""
        whole = bytes(data)
        return Zstd(level=self.level).pack(b"".join(whole[i :: self.width] for i in range(self.width)))

    def unpack(self, data: Buffer, raw_nbytes: int) -> Buffer:
        """Return the bytes in their order; what is not one frame of exactly `raw_nbytes` bytes raises FormatError."""
        planes, out, start = Zstd(level=self.level).unpack(data, raw_nbytes), bytearray(raw_nbytes), 0
        for i in range(min(self.width, raw_nbytes)):
            stop = start + len(range(i, raw_nbytes, self.width))
            out[i :: self.width] = planes[start:stop]
            start = stop
        return out
