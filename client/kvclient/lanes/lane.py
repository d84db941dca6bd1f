"""What a lane is: one way for the bytes of chunks, bound to one store and one tenant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from kvclient.lanes.frames import Found
from kvstore.core.api import PutNote, PutReceipt
from kvstore.core.blob import Buffer
from kvstore.core.errors import FormatError
from kvstore.core.key import ChunkKey
from kvstore.core.landing import Landing


class Lane(Protocol):
    """Moves chunks; thread-safe; raises nothing but KVError. Nothing is verified here: whoever reads a landing does that."""

    name: ClassVar[str]

    def get(self, keys: Sequence[ChunkKey], deadline: float) -> list[tuple[Found, Landing | None]]:
        """Ask for chunks in one round trip: per key what the store has, and where the bytes of a READY one land."""
        ...

    def put(self, blob: Buffer, header_nbytes: int, note: PutNote, deadline: float) -> PutReceipt:
        """Send a blob, whose header and manifest are its first `header_nbytes`, and return when the store has published it."""
        ...

    def retire(self) -> bool:
        """Close what nobody uses, and the rest when it comes back; tell whether something is still in use. Safe to call again."""
        ...

    def close(self) -> None:
        """Close what the lane holds; landings that are not full fail."""
        ...


def check_sizes(found: Sequence[Found], max_blob_nbytes: int) -> None:
    """Raise FormatError for a chunk that this client would not allocate memory for."""
    for each in found:
        if each.nbytes > max_blob_nbytes:
            raise FormatError(f"a chunk of {each.nbytes} B was announced; this client reads at most {max_blob_nbytes} B")
