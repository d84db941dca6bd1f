"""A set of storage keys that forgets the oldest ones."""

from __future__ import annotations

import threading


class RecentKeys:
    """Holds at most `most` keys; thread-safe."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._keys: dict[bytes, None] = {}

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    def add(self, key: bytes) -> None:
        """Hold a key; beyond `most` the one that was added first is forgotten."""
        with self._lock:
            self._keys[key] = None
            if len(self._keys) > self._most:
                del self._keys[next(iter(self._keys))]

    def discard(self, key: bytes) -> None:
        """Forget a key."""
        with self._lock:
            self._keys.pop(key, None)
