"""What one tenant's readers find by themselves: chunks of the memory tier that one of them asked for."""

from __future__ import annotations

import hashlib

from kvclient.lanes.frames import DirectoryPlace
from kvstore.core.directory import SALT_NBYTES, Listed, fingerprint
from kvstore.core.key import ChunkKey
from kvstore.store.memory import BlockLanding
from kvstore.store.results import Opened
from kvstore.store.shared_blocks import SharedBlocks


class Listing:
    """Lists a tenant's chunks under fingerprints that other tenants don't have.

    Parameters
    ----------
    secret : bytes
        Of this run of the server; with the tenant it makes the salt.
    """

    def __init__(self, blocks: SharedBlocks, secret: bytes, tenant: str) -> None:
        self._blocks = blocks
        self._salt = hashlib.blake2b(tenant.encode(), key=secret, digest_size=SALT_NBYTES).digest()

    @property
    def place(self) -> DirectoryPlace:
        """What a reader has to know."""
        return DirectoryPlace(self._blocks.directory_offset, self._blocks.directory.n_buckets, self._salt)

    def stamp(self) -> int:
        """Return what `enter` needs, before the chunk is opened."""
        return self._blocks.directory.stamp()

    def enter(self, key: ChunkKey, opened: Opened, stamp: int) -> None:
        """List a chunk if it lies in the shared memory and is not listed."""
        landing = opened.landing
        if isinstance(landing, BlockLanding) and not self._blocks.directory.lists(landing.block_offset):
            listed = Listed(stamp, self._blocks.arena_offset + landing.offset, landing.nbytes, opened.tier)
            self._blocks.directory.enter(landing.block_offset, fingerprint(self._salt, key), listed)
