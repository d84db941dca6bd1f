"""The store elsewhere as callers of a worker see it: one transport each, and none that nobody uses any more."""

from __future__ import annotations

from typing import Any

import pytest

from kvworker.serve import remote_stores
from kvworker.serve.config import StoreAddress
from kvworker.serve.remote_stores import IDLE_S, RemoteStores


class Transport:
    """What would be a connection."""

    is_closed = False

    def close(self) -> None:
        """Note that it was closed."""
        self.is_closed = True


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> dict[str, Transport]:
    """The transports that were opened, by token."""
    made: dict[str, Transport] = {}

    def connect(address: str, token: str, *more: object) -> Transport:
        made[token] = Transport()
        return made[token]

    monkeypatch.setattr(remote_stores, "connect_stores", connect)
    return made


def stores_at(moment: list[float]) -> RemoteStores:
    """Return them with a clock."""
    return RemoteStores(StoreAddress(), clock=lambda: moment[0])


def test_a_token_has_one_transport_and_another_token_another(opened: dict[str, Transport]) -> None:
    """The store knows callers by their tokens."""
    stores = stores_at([0.0])
    one: Any = stores("a", "first")
    assert one is stores("a", "first")
    assert one is not stores("a", "second")


def test_a_transport_that_nobody_asked_for_in_a_while_is_closed(opened: dict[str, Transport]) -> None:
    """Tokens of an hour would leave one behind each hour."""
    moment = [0.0]
    stores = stores_at(moment)
    stores("a", "old")
    moment[0] = IDLE_S - 1
    stores("a", "kept")
    moment[0] = IDLE_S + 1
    stores("a", "new")
    assert [opened[token].is_closed for token in ("old", "kept", "new")] == [True, False, False]
    assert stores("a", "old") is not None


def test_beyond_a_number_the_one_used_longest_ago_is_closed(opened: dict[str, Transport], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody fills a worker with connections."""
    monkeypatch.setattr(remote_stores, "MOST_CALLERS", 2)
    stores = stores_at([0.0])
    for token in ("first", "second", "first", "third"):
        stores("a", token)
    assert [opened[token].is_closed for token in ("first", "second", "third")] == [False, True, False]


def test_closing_closes_all_of_them(opened: dict[str, Transport]) -> None:
    """The worker's own included."""
    stores = stores_at([0.0])
    stores("a", "first")
    stores.close()
    assert opened["first"].is_closed
