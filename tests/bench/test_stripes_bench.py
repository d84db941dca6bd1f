"""The benchmark of stripes: the link that it pretends, and what its rows say."""

from __future__ import annotations

import random
import socket
import threading
import time

from kvworker.bench.far_link import FarLink, Pump
from kvworker.bench.rows import Bench
from kvworker.bench.stripes import rows_of

DATA = random.Random(1).randbytes(300_000)
LINK = FarLink(delay_s=0.0005, window_nbytes=100_000)


def test_a_link_delivers_every_byte_in_order_and_no_more_than_its_window_in_a_round_trip() -> None:
    """Three windows take two round trips and one way at least."""
    (near, inlet), (outlet, far) = socket.socketpair(), socket.socketpair()
    pump = Pump(inlet, outlet, LINK)

    def send() -> None:
        near.sendall(DATA)
        near.shutdown(socket.SHUT_WR)

    threads = [threading.Thread(target=run) for run in (pump.take_in, pump.let_out, send)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    came = b"".join(iter(lambda: far.recv(1 << 16), b""))
    took_s = time.perf_counter() - start
    for thread in threads:
        thread.join()
    for end in (near, inlet, outlet, far):
        end.close()
    assert came == DATA
    assert took_s >= 5 * LINK.delay_s


def test_one_connection_carries_its_window_in_each_round_trip() -> None:
    """512 KiB in 2 ms."""
    assert FarLink(0.001, 512 << 10).bytes_per_s == 262_144_000.0


def test_several_connections_are_compared_with_one_of_the_same_round() -> None:
    """Of three rounds, the median ratio is that of the second."""
    rounds = [{(("far", 1), "get"): one, (("far", 2), "get"): two} for one, two in ((1.0, 1.0), (4.0, 2.0), (9.0, 3.0))]
    rows = {(row.variant, row.metric): row.p50 for row in rows_of(Bench("stripes", "bytes", "none", "uint8"), 6_000_000, rounds)}
    assert rows == {
        ("far get, 1 connections", "mb_per_s"): 1.5,
        ("far get, 2 connections", "mb_per_s"): 3.0,
        ("far get, 2 connections", "over_one"): 2.0,
    }
