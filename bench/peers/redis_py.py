"""redis-py with its C parser: one value per object over TCP loopback.

Its get always makes a new `bytes`; numpy reads that in place. Its put copies the value into a new block, and at 8 MiB what that costs
depends on the heap: where nothing lies above the block, the allocator gives its pages back to the kernel after every put and touches them
again in the next one. So put is measured twice, as a program that holds nothing and as one that keeps a value it has read.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from functools import partial

import numpy as np
import redis

from bench.peers.timing import SIZES, Bytes, Meter, announce, check, connected, free_port, payload, running

PEER = "redis-py"


def server_version(binary: str) -> str:
    """Return the server's version, as in `redis-server 6.2.14`."""
    words = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.split()
    return "redis-server " + next(word[2:] for word in words if word.startswith("v="))


def check_get(client: redis.Redis, key: str, src: Bytes) -> None:
    """Compare one get with what was put, and keep none of its memory."""
    got = client.get(key)
    assert isinstance(got, bytes)
    check(np.frombuffer(got, np.uint8), src)


def measure_held_put(client: redis.Redis, meter: Meter, key: str, value: bytes) -> None:
    """Measure put while a value that was read is kept alive."""
    held = client.get(key)
    meter.measure("put held", len(value), partial(client.set, key, value))
    del held


def main() -> None:
    """Start a server without persistence, then measure get and put at every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("server", help="path of redis-server")
    binary = parser.parse_args().server
    announce(PEER, "redis", "hiredis", "numpy", also=server_version(binary))
    port = free_port()
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with tempfile.TemporaryDirectory() as folder, running([*command, "--dir", folder]) as server:
        connected(port, server).close()
        client, meter = redis.Redis(port=port), Meter(PEER, [server.pid])
        for nbytes in SIZES:
            src, key = payload(nbytes), f"value-{nbytes}"
            value = src.tobytes()
            client.set(key, value)
            meter.measure("get", nbytes, partial(client.get, key))
            check_get(client, key, src)
            meter.measure("put", nbytes, partial(client.set, key, value))
            measure_held_put(client, meter, key, value)


if __name__ == "__main__":
    main()
