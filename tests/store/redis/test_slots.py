"""Connections are lent first come first served, and whoever keeps one while others wait is asked for it."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from queue import Empty

import pytest

from kvstore.store.breaker import Breaker, BusyError
from kvstore.store.redis.dial import Dialer
from kvstore.store.redis.node import Node
from kvstore.store.redis.settings import RedisSettings
from kvstore.store.redis.slots import Slots
from tests.store.redis.fake import FakeRedis


@pytest.fixture
def node() -> Iterator[Node]:
    """Two connections at most to a server that says nothing."""
    with FakeRedis(lambda words: b"") as fake:
        dialer = Dialer(RedisSettings(fake.url, timeout_s=0.05, connections=2))
        opened = Node(dialer, dialer.seed, Breaker("here"))
        yield opened
        opened.close()


def test_when_all_connections_are_in_use_a_call_waits_its_timeout(node: Node) -> None:
    """The message names the setting, and the breaker does not hear of it: nobody failed."""
    lent = [node.lease(), node.lease()]
    with pytest.raises(BusyError, match=r"all 2 connections were in use for 0\.050 s; raise connections"):
        node.lease()
    assert not node.breaker.is_open
    node.give_back(lent[0])
    assert node.lease() is lent[0]
    for connection in lent:
        node.give_back(connection)


class Keeper:
    """Keeps a connection, and yields it when it is asked."""

    def __init__(self, node: Node) -> None:
        self._node, self.connection = node, node.lease()
        node.lend_to(self, self.connection)

    def yield_idle(self) -> None:
        """Give it back."""
        self._node.give_back(self.connection)


def test_who_keeps_a_connection_is_asked_for_it_when_somebody_waits(node: Node) -> None:
    """Not before, and nobody else is."""
    first, second = Keeper(node), Keeper(node)
    assert node.lease() is first.connection
    node.give_back(first.connection)
    second.yield_idle()


def test_what_is_free_is_lent_at_once() -> None:
    """Without asking anybody."""
    slots = Slots([1, 2])
    assert {slots.take(1.0, pytest.fail), slots.take(1.0, pytest.fail)} == {1, 2}
    assert not slots.is_wanted


def test_who_does_not_get_anything_leaves_the_row() -> None:
    """What is given back later is for others."""
    slots: Slots[int] = Slots([])
    pressed = []
    with pytest.raises(Empty):
        slots.take(0.03, lambda: pressed.append(1))
    slots.put(7)
    assert (slots.take(1.0, pytest.fail), bool(pressed), slots.is_wanted) == (7, True, False)


def test_whoever_waited_longest_is_next() -> None:
    """Who gives something back and wants it again at once stands behind those who wait."""
    slots, served = Slots([1]), []
    mine = slots.take(1.0, pytest.fail)
    ready = threading.Event()

    def wait() -> None:
        got = slots.take(5.0, ready.set)
        served.append("other")
        slots.put(got)

    other = threading.Thread(target=wait)
    other.start()
    assert ready.wait(5)
    assert slots.is_wanted
    slots.put(mine)
    slots.take(5.0, lambda: None)
    served.append("me")
    other.join()
    assert served == ["other", "me"]


def test_nothing_is_lost_or_lent_twice_however_threads_interleave() -> None:
    """Also when waiting ends in the moment in which something comes."""
    slots, held, wrong = Slots([1, 2]), set(), []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(300):
            try:
                thing = slots.take(rng.choice([0.0, 1e-5, 1e-4, 1.0]), lambda: None)
            except Empty:
                continue
            if thing in held:
                wrong.append(thing)
            held.add(thing)
            held.discard(thing)
            slots.put(thing)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert (wrong, sorted(slots.drain())) == ([], [1, 2])
