"""Zstandard: general entropy coding, for planes that are far from uniform."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar

from kvstore.codecs import ByteStage
from kvstore.core.blob import Buffer
from kvstore.core.errors import FormatError, InvalidInputError, MissingExtraError

_LEVELS = (1, 19)


@dataclass(frozen=True)
class Zstd(ByteStage):
    """Pack a field into one Zstandard frame that declares its content size.

    Paper: RFC 8878.

    Parameters
    ----------
    fields : str
        The last word of the names of the fields to pack; "" packs all.
    level : int
        1 to 19. On the exponents of bfloat16 KV level 1 is both faster and smaller than level 3.
    """

    name: ClassVar[str] = "zstd"
    fields: str = ""
    level: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _LEVELS[0] <= self.level <= _LEVELS[1]:
            raise InvalidInputError(f"zstd: level must be within {_LEVELS[0]} and {_LEVELS[1]}, got {self.level}")

    def pack(self, data: Buffer) -> Buffer:
        """Return one frame; raises MissingExtraError without the zstandard package."""
        packed: bytes = _zstandard().ZstdCompressor(level=self.level, write_checksum=False, write_content_size=True).compress(data)
        return packed

    def unpack(self, data: Buffer, raw_nbytes: int) -> Buffer:
        """Return the content of one frame that declares exactly `raw_nbytes` bytes; anything else raises FormatError."""
        zstandard = _zstandard()
        try:
            declared = zstandard.frame_content_size(data)
            if declared != raw_nbytes:
                raise FormatError(f"a zstd frame declares {declared} B where {raw_nbytes} B belong")
            content: bytes = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise FormatError(f"{len(data)} B are not one zstd frame of {raw_nbytes} B: {error}") from error
        if len(content) != raw_nbytes:
            raise FormatError(f"a zstd frame of {raw_nbytes} B holds {len(content)} B")
        return content


def _zstandard() -> ModuleType:
    """Import the zstandard package."""
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise MissingExtraError("zstd fields need the zstandard package: pip install 'kv-larder[store]'") from error
    return zstandard
