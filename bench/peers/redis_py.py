"""redis-py with its C parser: one value per object over TCP loopback. Its get always makes a new `bytes`; numpy reads that in place."""

from __future__ import annotations

import argparse
import subprocess
import tempfile

import numpy as np
import redis

from bench.peers.timing import SIZES, Meter, announce, check, connected, free_port, payload, running

PEER = "redis-py"


def server_version(binary: str) -> str:
    """Return the server's version, as in `redis-server 6.2.14`."""
    words = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.split()
    return "redis-server " + next(word[2:] for word in words if word.startswith("v="))


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
            meter.measure("get", nbytes, lambda key=key: np.frombuffer(client.get(key), np.uint8))
            check(np.frombuffer(client.get(key), np.uint8), src)
            meter.measure("put", nbytes, lambda key=key, value=value: client.set(key, value))


if __name__ == "__main__":
    main()
