"""Heads of the puts whose bodies come by several connections; `proto/LANES.md` describes the same bytes. Each ends with a sum.

LEND      name of a put, share
PUT_LENT  name of the put, share, the head of PUT
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from kvclient.lanes.frames import checked_share, pack_put, sealed, unsealed
from kvclient.lanes.share import Share
from kvstore.core.api import PutNote
from kvstore.core.blob import Buffer
from kvstore.core.errors import FormatError

NAME_NBYTES = 16
_LENT = struct.Struct(f"<{NAME_NBYTES}sIII")


class Lent(NamedTuple):
    """A put by several connections, under a name that its client drew, and what comes by one of them; share 0 comes by the put's own."""

    name: bytes
    share: Share


def pack_lent(lent: Lent) -> bytes:
    """Return the head of LEND."""
    return sealed(_pack_lent(lent))


def parse_lent(head: bytes) -> Lent:
    """Return which put it is, and which pieces of it."""
    return _parse_lent(unsealed(head))


def pack_put_lent(lent: Lent, note: PutNote, header: Buffer) -> bytes:
    """Return the head of PUT_LENT."""
    return sealed(_pack_lent(lent) + pack_put(note, header))


def parse_put_lent(head: bytes) -> tuple[Lent, bytes]:
    """Return which put it is, and the head of PUT."""
    head = unsealed(head)
    return _parse_lent(head[: _LENT.size]), head[_LENT.size :]


def _pack_lent(lent: Lent) -> bytes:
    return _LENT.pack(lent.name, *lent.share.told)


def _parse_lent(data: bytes) -> Lent:
    if len(data) != _LENT.size:
        raise FormatError(f"{len(data)} B do not tell which put they belong to")
    name, *share = _LENT.unpack(data)
    return Lent(name, checked_share(*share))
