"""DEFLATE: what every machine and language has, and GPUs decode in hardware."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import ClassVar

from kvstore.codecs import ByteStage
from kvstore.core.blob import Buffer
from kvstore.core.errors import FormatError, InvalidInputError

_BARE = -15  # no header and no checksum: parts have digests of their own


@dataclass(frozen=True)
class Deflate(ByteStage):
    """Pack a field into one DEFLATE stream without a wrapper.

    Paper: RFC 1951; KVTC (arXiv 2511.01815) puts it behind its quantizer.

    Parameters
    ----------
    fields : str
        The last word of the names of the fields to pack; "" packs all.
    level : int
        1 to 9.
    """

    name: ClassVar[str] = "deflate"
    fields: str = ""
    level: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.level <= 9:
            raise InvalidInputError(f"deflate: level must be within 1 and 9, got {self.level}")

    def pack(self, data: Buffer) -> Buffer:
        """Return one stream."""
        packer = zlib.compressobj(self.level, zlib.DEFLATED, _BARE)
        return packer.compress(data) + packer.flush()

    def unpack(self, data: Buffer, raw_nbytes: int) -> Buffer:
        """Return the content of one stream of exactly `raw_nbytes` bytes; anything else raises FormatError."""
        unpacker = zlib.decompressobj(_BARE)
        try:
            content = unpacker.decompress(data, raw_nbytes + 1)
        except zlib.error as error:
            raise FormatError(f"{len(data)} B are no DEFLATE stream: {error}") from error
        if len(content) != raw_nbytes or not unpacker.eof or unpacker.unused_data:
            raise FormatError(f"{len(data)} B are not one DEFLATE stream of {raw_nbytes} B")
        return content
