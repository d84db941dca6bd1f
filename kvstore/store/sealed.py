"""How an encrypted record lies in a tier: inside a record whose meta says nothing, so that every tier can keep it.

The outer record's blob is a head of 64 bytes and the inner record, head included, in pieces of 256 KiB:

    0   8   magic "KVSEALED"          32  8   nonce prefix, random for each record that is written
    8   4   version, 1                40  8   bytes of the inner record
    12  4   zero                      48  16  zero
    16  16  key id, padded with zeros 64  ..  each piece: AES-256-GCM ciphertext, tag of 16 bytes

Integers are little-endian. A piece's nonce is the prefix and its number (u32, big-endian); its associated data are this head, the storage
key and its number. So no piece can be moved within a record or to another one, and none can be left out.

**Nonces.** A key belongs to one storage key (see `KeyRing`), and a record is written once in its life in a tier. Written again, behind an
eviction, it has another random prefix of 64 bits: two of 2**20 writes of the *same* record have the same prefix with odds of 2**-25.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kvstore.core.blob import Buffer
from kvstore.core.errors import CorruptError
from kvstore.core.key import ChunkKey
from kvstore.core.landing import Landing
from kvstore.store.key_ring import MAX_ID_CHARS, KeyRing
from kvstore.store.record import RecordMeta, record_head

SEALED = RecordMeta(ChunkKey(bytes(32), bytes(32), bytes(32)), "sealed", 0, "aes-256-gcm")
PIECE_NBYTES = 256 << 10
TAG_NBYTES = 16
_MAGIC = b"KVSEALED"
_VERSION = 1
_HEAD = struct.Struct("<8sII16sQQ16s")
START = SEALED.blob_offset + _HEAD.size
"""Where the first piece begins in the outer record."""


@dataclass(frozen=True)
class Head:
    """The head of an encrypted record: `data` is all of it."""

    key_id: str
    nonce_prefix: int
    nbytes: int
    data: bytes


def sealed_nbytes(nbytes: int) -> int:
    """Return the length of the outer record of one with `nbytes`."""
    return START + nbytes + TAG_NBYTES * -(-nbytes // PIECE_NBYTES)


def plain_nbytes(nbytes: int) -> int | None:
    """Return the length of the record within an outer one of `nbytes`; None for a length that none has."""
    body = nbytes - START
    plain = body - TAG_NBYTES * -(-body // (PIECE_NBYTES + TAG_NBYTES))
    return plain if plain >= 0 and sealed_nbytes(plain) == nbytes else None


def seal(ring: KeyRing, storage_key: bytes, pieces: Sequence[Buffer]) -> list[Buffer]:
    """Return an outer record in several buffers: one copy, which is the ciphertext."""
    plain = _as_one(pieces)
    cipher = ring.cipher(ring.newest, storage_key)
    assert cipher is not None
    prefix = int.from_bytes(os.urandom(8), "little")
    packed = _HEAD.pack(_MAGIC, _VERSION, 0, ring.newest.encode("ascii"), prefix, plain.nbytes, b"")
    head = Head(ring.newest, prefix, plain.nbytes, packed)
    blob_nbytes = sealed_nbytes(plain.nbytes) - SEALED.blob_offset
    outer: list[Buffer] = [record_head(storage_key, SEALED, blob_nbytes) + packed]
    for number, at in enumerate(range(0, plain.nbytes, PIECE_NBYTES)):
        nonce, known = _nonce_and_data(head, storage_key, number)
        outer.append(cipher.encrypt(nonce, plain[at : at + PIECE_NBYTES], known))
    return outer


def parse_head(data: Buffer, outer_nbytes: int) -> Head:
    """Read the head of an encrypted record in an outer one of `outer_nbytes`; raises CorruptError."""
    if len(data) != _HEAD.size:
        raise CorruptError(f"an encrypted record has a head of {_HEAD.size} B, got {len(data)} B")
    magic, version, zero, key_id, prefix, nbytes, zeros = _HEAD.unpack(data)
    name = key_id.rstrip(b"\0").decode("ascii", "replace")
    if magic != _MAGIC or version != _VERSION or zero or any(zeros) or not 0 < len(name) <= MAX_ID_CHARS:
        raise CorruptError("not an encrypted record of a version that is known here")
    if sealed_nbytes(nbytes) != outer_nbytes:
        raise CorruptError(f"an encrypted record of {nbytes} B takes {sealed_nbytes(nbytes)} B, got {outer_nbytes} B")
    return Head(name, prefix, nbytes, bytes(data))


class Unsealing(Landing):
    """The inner record, decrypted a piece at a time as the outer one arrives: a reader uses the first parts while the last ones travel.

    One copy, from ciphertext to plaintext. A piece that was changed, or decrypted with another key, raises CorruptError.
    """

    def __init__(self, outer: Landing, head: Head, cipher: AESGCM, storage_key: bytes, room: memoryview) -> None:
        super().__init__(room[: head.nbytes])
        self._outer, self._head, self._cipher, self._storage_key = outer, head, cipher, storage_key

    def _receive(self, room: memoryview) -> int:
        number = self.filled // PIECE_NBYTES
        count = min(PIECE_NBYTES, room.nbytes)
        at = START + number * (PIECE_NBYTES + TAG_NBYTES)
        self._outer.fill(at + count + TAG_NBYTES)
        nonce, known = _nonce_and_data(self._head, self._storage_key, number)
        try:
            room[:count] = self._cipher.decrypt(nonce, self._outer.view[at : at + count + TAG_NBYTES], known)
        except InvalidTag as error:
            raise CorruptError(
                f"piece {number} of an encrypted record does not decrypt: it was changed, or key {self._head.key_id} is another now"
            ) from error
        return count

    def _end(self) -> None:
        self._outer.close()


def _nonce_and_data(head: Head, storage_key: bytes, number: int) -> tuple[bytes, bytes]:
    """Return what a piece is encrypted with besides the key."""
    return struct.pack("<Q", head.nonce_prefix) + struct.pack(">I", number), head.data + storage_key + struct.pack(">I", number)


def _as_one(pieces: Sequence[Buffer]) -> memoryview:
    return memoryview(pieces[0]).cast("B") if len(pieces) == 1 else memoryview(b"".join(pieces))
