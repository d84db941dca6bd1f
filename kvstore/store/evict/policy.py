"""One interface for eviction policies: records in, records out; no clock, no I/O, no chance. Not thread-safe: the caller locks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Set
from dataclasses import dataclass
from typing import ClassVar

from kvstore.core.discovery import find, known_names
from kvstore.core.errors import ConfigError, UnsupportedError

_PACKAGE = "kvstore.store.evict"


@dataclass(frozen=True)
class Item:
    """What a policy weighs: a storage key, the bytes it takes in the tier, and the seconds that computing it again would take."""

    key: bytes
    nbytes: int
    recompute_s: float = 0.0


class Policy(ABC):
    """Knows the items of one tier and chooses which of them go.

    The caller says what happens, in this order for a new item: `on_miss`, `evict` if room is needed, `on_insert`. `on_hit` for every read;
    `on_remove` when an item leaves for another reason than eviction. Unknown keys are ignored, a second `on_insert` is a hit.

    Parameters
    ----------
    capacity_bytes : int
        Capacity of the tier; what policies that remember evicted items size their memory by.
    """

    name: ClassVar[str]

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._items: dict[bytes, Item] = {}

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: bytes) -> bool:
        return key in self._items

    def on_miss(self, key: bytes) -> None:  # noqa: B027 - most policies learn nothing from it
        """Note that `key` is not here and is about to be inserted."""

    def on_insert(self, item: Item) -> None:
        """Note a new item."""
        if item.key in self._items:
            self.on_hit(item.key)
            return
        self._items[item.key] = item
        self.used_bytes += item.nbytes
        self._inserted(item)

    def on_hit(self, key: bytes) -> None:
        """Note a read."""
        if key in self._items:
            self._hit(self._items[key])

    def on_remove(self, key: bytes) -> None:
        """Forget an item that is gone."""
        if item := self._forget(key):
            self._removed(item)

    def evict(self, nbytes: int, pinned: Set[bytes] = frozenset()) -> list[Item]:
        """Choose items that free at least `nbytes`, worst first, and forget them.

        Never a pinned one. When all that is not pinned would not be enough, nothing is chosen and the result is empty.
        """
        held = sum(self._items[key].nbytes for key in pinned if key in self._items)
        if self.used_bytes - held < nbytes:
            return []
        victims: list[Item] = []
        while nbytes > 0:
            victim = self._pop_victim(pinned)
            self._forget(victim.key)
            victims.append(victim)
            nbytes -= victim.nbytes
        return victims

    def _forget(self, key: bytes) -> Item | None:
        """Drop the item from the table of items."""
        item = self._items.pop(key, None)
        if item is not None:
            self.used_bytes -= item.nbytes
        return item

    @abstractmethod
    def _inserted(self, item: Item) -> None:
        """Rank a new item."""

    @abstractmethod
    def _hit(self, item: Item) -> None:
        """Rank an item again that was read."""

    @abstractmethod
    def _removed(self, item: Item) -> None:
        """Drop an item from the ranking."""

    @abstractmethod
    def _pop_victim(self, pinned: Set[bytes]) -> Item:
        """Drop the worst item that is not pinned from the ranking and return it; there is one."""


def make_policy(name: str, capacity_bytes: int) -> Policy:
    """Return a new policy; it is found by its file's name, and an unknown name raises ConfigError with the known ones."""
    try:
        found: type[Policy] = find(_PACKAGE, name)
    except UnsupportedError as error:
        raise ConfigError(f"no eviction policy {name!r}; known: {', '.join(known_names(_PACKAGE))}") from error
    return found(capacity_bytes)
