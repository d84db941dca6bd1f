"""Bytes as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvstore.codecs import ByteStage
from kvstore.core.blob import Buffer
from kvstore.core.errors import FormatError
from kvstore.core.stages import Traits


@dataclass(frozen=True)
class Raw(ByteStage):
    """Leave bytes alone: what a field's packing says when no byte stage made it smaller.

    Paper: none.
    """

    name: ClassVar[str] = "raw"
    traits: ClassVar[Traits] = Traits(is_bit_exact=True, is_token_granular=True)
    fields: str = ""

    def pack(self, data: Buffer) -> Buffer:
        """Return `data` itself."""
        return data

    def unpack(self, data: Buffer, raw_nbytes: int) -> Buffer:
        """Return `data` itself, without a copy; another length raises FormatError."""
        if len(data) != raw_nbytes:
            raise FormatError(f"a raw field should have {raw_nbytes} B, got {len(data)} B")
        return data
