"""LZ4: cheap framing for fields with runs, as masks and codes that are mostly zero."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import ClassVar

from kvstore.codecs import ByteStage
from kvstore.core.blob import Buffer
from kvstore.core.errors import FormatError, InvalidInputError, MissingExtraError

_MOST_NBYTES = 0x7E000000  # of a block


@dataclass(frozen=True)
class Lz4(ByteStage):
    """Pack a field into one LZ4 block; fields beyond 2,113,929,216 B raise InvalidInputError.

    Paper: the LZ4 block format.

    Parameters
    ----------
    fields : str
        The last word of the names of the fields to pack; "" packs all.
    """

    name: ClassVar[str] = "lz4"
    fields: str = ""

    def pack(self, data: Buffer) -> Buffer:
        """Return one block; raises MissingExtraError without the lz4 package."""
        if len(data) > _MOST_NBYTES:
            raise InvalidInputError(f"lz4 packs {_MOST_NBYTES} B at most, got {len(data)} B; use zstd")
        packed: bytes = _block().compress(data, store_size=False)
        return packed

    def unpack(self, data: Buffer, raw_nbytes: int) -> Buffer:
        """Return the content of one block of exactly `raw_nbytes` bytes; anything else raises FormatError."""
        block = _block()
        if raw_nbytes > _MOST_NBYTES:
            raise FormatError(f"an lz4 block holds {_MOST_NBYTES} B at most, not {raw_nbytes} B")
        try:
            content: bytes = block.decompress(data, uncompressed_size=raw_nbytes)
        except block.LZ4BlockError as error:
            raise FormatError(f"{len(data)} B are not one lz4 block of {raw_nbytes} B: {error}") from error
        if len(content) != raw_nbytes:
            raise FormatError(f"an lz4 block of {raw_nbytes} B holds {len(content)} B")
        return content


def _block() -> ModuleType:
    """Import the lz4 package."""
    try:
        return import_module("lz4.block")
    except ModuleNotFoundError as error:
        raise MissingExtraError("lz4 fields need the lz4 package: pip install 'kv-larder[lz4]'") from error
