"""A tier with its eviction policy: makes room before it stores."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from kvstore.core.blob import Buffer
from kvstore.core.errors import CapacityError
from kvstore.core.landing import Landing
from kvstore.store.evict.policy import Item, Policy
from kvstore.store.tier import Room, Tier

T = TypeVar("T")

MAX_NOTED = 64  # reads of one record that are told to a policy at once
MAX_ROUNDS = 16  # of eviction for one put: free space may lie in pieces, and readers may still hold what was evicted


class Shelf:
    """One tier of a store. Its lock covers the policy and the sets of keys on the move, never a call to the tier.

    A key that arrives or leaves is moved by one thread at a time; others wait for it.

    Parameters
    ----------
    tier : Tier
        Where the records are.
    policy : Policy or None
        Chooses what goes; None for a tier that evicts by itself.
    leased : callable
        Returns the keys that must stay.
    release : callable
        Told of a victim before it is deleted; may refuse by returning False.
    """

    def __init__(self, tier: Tier, policy: Policy | None, leased: Callable[[], set[bytes]], release: Callable[[bytes], bool]) -> None:
        self.tier = tier
        self._policy = policy
        self._leased = leased
        self._release = release
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._moving: set[bytes] = set()

    def put(self, item: Item, pieces: Sequence[Buffer]) -> None:
        """Store a record, evicting others as needed; raises CapacityError when leases or readers keep too much."""
        self._admit(item, lambda: self._with_room(item.nbytes, lambda: self.tier.put(item.key, pieces)))

    def get(self, key: bytes) -> Landing | None:
        """Begin to read a record and tell the policy."""
        found = self.tier.get(key)
        if self._policy is not None and found is not None:
            with self._lock:
                self._policy.on_hit(key)
        return found

    def note_reads(self, key: bytes, n_reads: int) -> None:
        """Tell the policy of reads that did not pass through here."""
        if self._policy is not None:
            with self._lock:
                for _ in range(min(n_reads, MAX_NOTED)):
                    self._policy.on_hit(key)

    def reserve(self, nbytes: int) -> Room:
        """Return room to write a record into, evicting others as needed; raises CapacityError when leases or readers keep too much."""
        return self._with_room(nbytes, lambda: self.tier.reserve(nbytes))

    def publish(self, item: Item, room: Room) -> None:
        """Make a filled room the record of its key."""
        self._admit(item, lambda: self.tier.publish(item.key, room))

    def delete(self, key: bytes) -> bool:
        """Remove a record."""
        return self._take(key, self.tier.delete)

    def quarantine(self, key: bytes) -> bool:
        """Take a damaged record out of sight."""
        return self._take(key, self.tier.quarantine)

    def adopt(self, item: Item) -> None:
        """Tell the policy of a record that was there when the store opened."""
        if self._policy is not None:
            self._policy.on_insert(item)

    def trim(self) -> None:
        """Evict until the tier is within its capacity, which may have been lowered since its records were written."""
        while self._policy is not None and self.tier.used_bytes > self.tier.info.capacity_bytes and self._make_room(0):
            pass

    def _take(self, key: bytes, take: Callable[[bytes], bool]) -> bool:
        with self._moves(key):
            with self._lock:
                if self._policy is not None:
                    self._policy.on_remove(key)
            return take(key)

    def _admit(self, item: Item, store: Callable[[], None]) -> None:
        """Store a record that the policy does not know, and tell it."""
        if self._policy is None:
            store()
            return
        with self._moves(item.key):
            if item.key in self._policy:
                return
            with self._lock:
                self._policy.on_miss(item.key)
            try:
                store()
            except BaseException:
                with self._lock:
                    self._policy.on_remove(item.key)
                raise
            with self._lock:
                self._policy.on_insert(item)

    def _with_room(self, nbytes: int, store: Callable[[], T]) -> T:
        """Try to store, then make room and try again."""
        for _ in range(MAX_ROUNDS):
            try:
                return store()
            except CapacityError:
                if self._policy is None or not self._make_room(nbytes):
                    raise
        return store()

    def _make_room(self, nbytes: int) -> bool:
        """Evict enough for `nbytes`, or about as much when enough is free but not in one piece; return whether anything went."""
        over = self.tier.used_bytes + nbytes - self.tier.info.capacity_bytes
        pinned = self._leased()
        with self._lock:
            assert self._policy is not None
            victims = self._policy.evict(over if over > 0 else nbytes, pinned | self._moving)
            going = [item for item in victims if self._release(item.key)]
            for item in victims:
                if item not in going:
                    self._policy.on_insert(item)
            self._moving |= {item.key for item in going}
        try:
            for item in going:
                self.tier.delete(item.key)
        finally:
            with self._lock:
                self._moving -= {item.key for item in going}
                self._changed.notify_all()
        return bool(going)

    @contextmanager
    def _moves(self, key: bytes) -> Iterator[None]:
        """Be the only one who moves a key in or out of the tier."""
        with self._lock:
            self._changed.wait_for(lambda: key not in self._moving)
            self._moving.add(key)
        try:
            yield
        finally:
            with self._lock:
                self._moving.discard(key)
                self._changed.notify_all()
