"""Counters that need no lock, and lose nothing."""

from __future__ import annotations

import threading

from kvstore.store.counters import Counters


def test_what_many_threads_add_is_all_there() -> None:
    """Those that have ended included."""
    counters = Counters()

    def add() -> None:
        for _ in range(1000):
            counters.add("calls")
            counters.add_all((("bytes", 3), ("calls", 1)))

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counters.snapshot() == {"bytes": 24_000, "calls": 16_000}


def test_threads_that_come_and_go_leave_nothing_but_their_sums() -> None:
    """A connection is a thread, and there may be a million of them."""
    counters = Counters()
    for _ in range(50):
        thread = threading.Thread(target=counters.add, args=("calls",))
        thread.start()
        thread.join()
    assert len(counters._running) <= 2
    assert counters["calls"] == 50


def test_a_reader_sees_a_sum_that_never_falls() -> None:
    """While threads add, end and begin."""
    counters, seen, stop = Counters(), [0.0], threading.Event()

    def add() -> None:
        while not stop.is_set():
            for _ in range(50):
                threading.Thread(target=counters.add, args=("calls",)).start()

    adding = threading.Thread(target=add)
    adding.start()
    for _ in range(300):
        seen.append(counters["calls"])
    stop.set()
    adding.join()
    assert seen == sorted(seen)


def test_a_reason_counts_beside_the_sum() -> None:
    """As `name.reason`."""
    counters = Counters()
    counters.add("misses", reason="evicted")
    counters.add("misses", 2, "epoch")
    assert counters.snapshot() == {"misses": 3, "misses.epoch": 2, "misses.evicted": 1}


def test_what_was_never_added_to_is_zero() -> None:
    """And does not appear for having been asked for."""
    counters = Counters()
    assert counters["calls"] == 0
    assert counters.snapshot() == {}
