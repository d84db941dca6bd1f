"""Time one operation of a peer and count the processor time of every process that takes part in it."""

from __future__ import annotations

import json
import random
import resource
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version

import numpy as np
import psutil
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

MIB = 1 << 20
SIZES = (MIB, 8 * MIB, 32 * MIB)  # bytes
WARM_UPS = 3
MIN_OPERATIONS = 30
MIN_S = 1.0  # processor time of other processes is counted in ticks of 10 ms: one second keeps that error under 1 %
MAX_S = 2.0


def nothing() -> None:
    """Do nothing between two operations."""


class Meter:
    """Measure operations of one peer, whose servers are `servers` and all that they started."""

    def __init__(self, peer: str, servers: Sequence[int]) -> None:
        self.peer = peer
        self._servers = servers

    def measure(self, op: str, nbytes: int, operation: Callable[[], object], tidy: Callable[[], object] = nothing) -> None:
        """Run an operation on `nbytes` bytes repeatedly and print one line of JSON.

        `tidy` runs after every operation outside its time, but its processor time is counted.
        Ends after 30 operations and 1 s, or after 2 s.
        """
        for _ in range(WARM_UPS):
            operation()
            tidy()
        cpu = -self._cpu_s()
        seconds = list(_timed(operation, tidy))
        cpu += self._cpu_s()
        gigabytes = len(seconds) * nbytes / 1e9
        point = {
            "peer": self.peer,
            "op": op,
            "nbytes": nbytes,
            "mb_per_s": round(gigabytes * 1e3 / sum(seconds), 1),
            "p50_us": round(float(np.percentile(seconds, 50)) * 1e6, 1),
            "p99_us": round(float(np.percentile(seconds, 99)) * 1e6, 1),
            "cpu_s_per_gb": round(cpu / gigabytes, 4),
        }
        print(json.dumps(point), flush=True)

    def _cpu_s(self) -> float:
        used = resource.getrusage(resource.RUSAGE_SELF)
        total = used.ru_utime + used.ru_stime
        for pid in self._servers:
            server = psutil.Process(pid)
            for process in (server, *server.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):  # a child may end between the listing and this line
                    times = process.cpu_times()
                    total += times.user + times.system
        return total


def _timed(operation: Callable[[], object], tidy: Callable[[], object]) -> Iterator[float]:
    """Yield the seconds of each operation until there are enough of them."""
    start = time.perf_counter()
    count = 0
    while True:
        before = time.perf_counter()
        operation()
        after = time.perf_counter()
        tidy()
        yield after - before
        count += 1
        if after - start >= (MIN_S if count >= MIN_OPERATIONS else MAX_S):
            return


def announce(peer: str, *packages: str, also: str = "") -> None:
    """Print the versions of the packages that a peer's numbers depend on."""
    versions = [f"{package} {version(package)}" for package in packages]
    print(json.dumps({"peer": peer, "versions": ", ".join(versions + ([also] if also else []))}), flush=True)


def payload(nbytes: int) -> Bytes:
    """Return random bytes, the same in every run."""
    return np.random.default_rng(nbytes).integers(0, 256, nbytes, dtype=np.uint8)


def check(got: Bytes, expected: Bytes) -> None:
    """Refuse a peer that returned other bytes than were put."""
    if not np.array_equal(got, expected):
        raise SystemExit(f"a get of {expected.nbytes} B returned other bytes than were put")


def free_port() -> int:
    """Return an unused TCP port below the ephemeral range.

    Inside that range a client that retries until its server listens may connect to itself.
    """
    for port in random.sample(range(20000, 32000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise SystemExit("none of 100 ports between 20000 and 32000 is free on 127.0.0.1")


@contextmanager
def running(command: Sequence[str], cwd: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server for the length of the block; its standard input stays open, its output is dropped."""
    server = subprocess.Popen(command, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield server
    finally:
        server.terminate()
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def connected(port: int, server: subprocess.Popen[bytes], timeout_s: float = 60.0) -> socket.socket:
    """Return a connection to a server on this machine as soon as it listens."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"the server stopped with status {server.returncode} before it listened")
        try:
            return socket.create_connection(("127.0.0.1", port))
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"the server did not listen within {timeout_s:.0f} s")
