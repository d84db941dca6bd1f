"""Opening stores, and what tests do with them over and over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from kvstore.core.reading import land_all
from kvstore.store.memory import MemoryTier
from kvstore.store.results import Miss, Opened, StoreSettings
from kvstore.store.tier import Tier
from kvstore.store.tiered import TieredStore
from tests.store.chunks import make_chunk

ROOMY = 1 << 20


class OpenStore(Protocol):
    """Opens a store over tiers, with settings by name."""

    def __call__(self, *tiers: Tier, clock: Callable[[], float] = ..., **settings: object) -> TieredStore: ...


@contextmanager
def closing_stores() -> Iterator[OpenStore]:
    """Open stores that are closed behind the test."""
    opened: list[TieredStore] = []

    def make(*tiers: Tier, clock: Callable[[], float] = time.monotonic, **settings: object) -> TieredStore:
        opened.append(TieredStore(tiers, StoreSettings(**settings), clock))  # type: ignore[arg-type]
        return opened[-1]

    yield make
    for store in opened:
        store.close(timeout_s=1.0)


def put(store: TieredStore, seed: int, nbytes: int = 64, durable: bool = False) -> bytes:
    """Put a chunk and return its storage key."""
    key, meta, blob = make_chunk(seed, nbytes)
    store.put(key, meta, blob, durable=durable)
    return key


def blob_of(outcome: Opened | Miss) -> bytes:
    """Read a blob to its end and return it, verified; fails on a miss."""
    assert isinstance(outcome, Opened), outcome
    land_all(outcome.landing)
    return bytes(outcome.landing.view)


def corrupt(tier: MemoryTier, key: bytes, at: int = -1) -> None:
    """Flip one bit of a record where the memory tier keeps it; by default in the last byte, which is of the last part."""
    tier._blocks[key][0][at] ^= 1
