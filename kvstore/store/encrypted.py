"""Encrypt what a tier keeps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

from kvstore.core.blob import Buffer
from kvstore.core.errors import CorruptError, FormatError, IdentityError
from kvstore.core.landing import Landing
from kvstore.core.pool import BufferPool
from kvstore.store.key_ring import KeyRing
from kvstore.store.record import land_head
from kvstore.store.sealed import SEALED, START, Unsealing, parse_head, plain_nbytes, seal
from kvstore.store.tier import Listed, Tier, WrappedTier

_DAMAGE = (CorruptError, FormatError, IdentityError)
_log = logging.getLogger(__name__)


class EncryptedTier(WrappedTier):
    """Keeps records encrypted in another tier; see `kvstore.store.sealed`. What is read and written through it is plain.

    A record whose key was taken out of the ring, and one that lies there in plain text, is not here; it is removed where that is noticed.
    One that does not decrypt raises CorruptError. Copies: one more for each record that is put, which is in memory twice meanwhile, and one
    more for each that is read.

    Parameters
    ----------
    tier : Tier
        Disk or Redis, with their wrappers.
    ring : callable
        Returns the keys as they are now.
    pool : BufferPool
        Where the memory of decrypted records comes from.
    """

    def __init__(self, tier: Tier, ring: Callable[[], KeyRing], pool: BufferPool) -> None:
        super().__init__(tier)
        self._ring = ring
        self._pool = pool

    def get(self, key: bytes) -> Landing | None:
        """Begin to read a record; what it raises of damage, it raises as the pieces arrive."""
        outer = self._tier.get(key)
        if outer is None:
            return None
        try:
            landing = self._unseal(key, outer)
        except BaseException:
            outer.close()
            raise
        if landing is None:
            outer.close()
            self._tier.delete(key)
        return landing

    def put(self, key: bytes, pieces: Sequence[Buffer]) -> None:
        self._tier.put(key, seal(self._ring(), key, pieces))

    def find(self, keys: Sequence[bytes]) -> list[int | None]:
        return [None if nbytes is None else plain_nbytes(nbytes) for nbytes in self._tier.find(keys)]

    def scan(self) -> Iterator[Listed]:
        """Iterate over the records that can be read; their metas take a read and a decryption of each one's front."""
        n_removed = 0
        for listed in self._tier.scan():
            inner = self._look_into(listed)
            if inner is None:
                n_removed += 1
            else:
                yield inner
        if n_removed:
            _log.warning("tier %s: removed %d records that no key of the ring opens", self.info.name, n_removed)

    def _unseal(self, key: bytes, outer: Landing) -> Landing | None:
        """Return the record within; None when there is none, or no key for it."""
        if land_head(outer, key).meta != SEALED:
            return None
        outer.fill(min(START, outer.nbytes))
        head = parse_head(outer.view[SEALED.blob_offset : START], outer.nbytes)
        cipher = self._ring().cipher(head.key_id, key)
        return Unsealing(outer, head, cipher, key, self._pool.take(head.nbytes)) if cipher else None

    def _look_into(self, listed: Listed) -> Listed | None:
        """Return what a listing tells of the record within; None, and the record is gone, when it can't be read."""
        nbytes = plain_nbytes(listed.nbytes)
        if listed.meta is None and nbytes is not None:
            return Listed(listed.key, nbytes)
        try:
            landing = self.get(listed.key)
            if landing is None:
                return None
            with closing(landing):
                return Listed(listed.key, landing.nbytes, land_head(landing, listed.key).meta)
        except _DAMAGE as error:
            _log.warning("tier %s had a damaged record, now out of use: %s", self.info.name, error)
            self._tier.quarantine(listed.key)
            return None
