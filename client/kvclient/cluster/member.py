"""One of several store servers as a client sees it: whether it may be asked, and what it has to be told before it may be again."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kvstore.core.api import Scope, StoreAPI
from kvstore.core.epochs import EpochAnswer, EpochBook
from kvstore.core.errors import ClosedError, DeadlineError, TierUnavailableError
from kvstore.core.key import ChunkKey

logger = logging.getLogger(__name__)

GONE = (TierUnavailableError, DeadlineError, ClosedError)
"""Errors that say that a server does not answer, and nothing about what it was asked."""
MAX_OWED = 1 << 16


class Server(StoreAPI, Protocol):
    """A store that says and takes epochs, as `RemoteStore` does."""

    def agree(self, at_least: EpochBook, known_digest: bytes = b"", timeout_s: float | None = None) -> EpochAnswer:
        """Raise epochs to at least these and return all of the tenant's; see `kvclient.remote.RemoteStore.agree`."""
        ...


@dataclass(eq=False)
class Member:
    """A server, its health and its epochs. The cluster changes it under its lock; reading takes none.

    It is ready while its epochs were compared with the others' a short while ago. One that failed is down until they were again: whatever
    was invalidated in the meantime is a miss on it before it is read. What was deleted while it was down is deleted first.
    """

    address: str
    server: Server
    name: str
    digest: bytes = b""
    epochs: EpochBook = field(default_factory=dict)
    ready_until_s: float = -math.inf
    n_failed: int = 0
    retry_at_s: float = -math.inf
    owed_keys: set[ChunkKey] = field(default_factory=set)
    owed_scopes: set[Scope] = field(default_factory=set)

    @property
    def is_down(self) -> bool:
        """Whether it did not answer, and was not brought up to date since."""
        return self.n_failed > 0

    def is_ready(self, now_s: float) -> bool:
        """Whether it may be read from."""
        return not self.is_down and now_s < self.ready_until_s

    def fail(self, now_s: float, first_pause_s: float, longest_pause_s: float, why: Exception) -> None:
        """Note that it did not answer; the pause before it is tried again doubles, once for calls that failed together."""
        if self.is_down and now_s < self.retry_at_s:
            return
        if not self.is_down:
            logger.warning("store %s is left out until it answers: %s", self.address, why)
        pause_s = min(longest_pause_s, first_pause_s * 2.0 ** min(self.n_failed, 30))
        self.n_failed, self.retry_at_s, self.ready_until_s = self.n_failed + 1, now_s + pause_s, -math.inf

    def admit(self, until_s: float) -> None:
        """Let it be read from until then: its epochs are those of the others."""
        if self.n_failed:
            logger.warning("store %s answers again", self.address)
        self.n_failed, self.ready_until_s = 0, until_s

    def owe(self, keys: Sequence[ChunkKey]) -> None:
        """Remember chunks to delete before it is read again; raises TierUnavailableError where that would be too many."""
        if len(self.owed_keys) + len(keys) > MAX_OWED:
            raise TierUnavailableError(f"store {self.address} is away, and {MAX_OWED} deletions wait for it; delete when it is back")
        self.owed_keys.update(keys)

    def pay(self) -> None:
        """Do what is owed; raises what the server raises, and then the rest is still owed."""
        while self.owed_keys:
            keys = list(self.owed_keys)
            self.server.delete(keys)
            self.owed_keys.difference_update(keys)
        while self.owed_scopes:
            scope = next(iter(self.owed_scopes))
            self.server.invalidate(scope)
            self.owed_scopes.discard(scope)

    def ask_epochs(self, at_least: EpochBook, timeout_s: float | None = None) -> None:
        """Tell it epochs and learn its own; the first time it is given as long as any call."""
        answer = self.server.agree(at_least, self.digest, timeout_s if self.digest else None)
        if answer.epochs is not None:
            self.epochs = answer.epochs
        self.digest, self.name = answer.digest, answer.server or self.address
