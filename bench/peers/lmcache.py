"""LMCache's standalone server over TCP loopback, driven by its own connector class into one reused buffer.

Its put is not acknowledged by the server, so an `exists` follows that can only be answered once the put has arrived.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine
from functools import partial

import numpy as np

from bench.peers.timing import SIZES, Bytes, Meter, announce, check, connected, free_port, payload, running

os.environ["LMCACHE_TRACK_USAGE"] = "false"
os.environ["LMCACHE_LOG_LEVEL"] = "ERROR"

import torch
from lmcache.utils import CacheEngineKey
from lmcache.v1.memory_management import MemoryFormat
from lmcache.v1.storage_backend.connector.lm_connector import LMCServerConnector

PEER = "LMCache"


class Buffer:
    """What the connector needs of a memory object, over a numpy array."""

    def __init__(self, array: Bytes) -> None:
        self.array = array
        self.byte_array = array.data

    def get_shape(self) -> torch.Size:
        """Return the length in the first of four dimensions."""
        return torch.Size([self.array.nbytes, 1, 1, 1])

    def get_dtype(self) -> torch.dtype:
        """Return the type of plain bytes."""
        return torch.uint8

    def get_memory_format(self) -> MemoryFormat:
        """Return any defined format; the bytes travel the same way in each."""
        return MemoryFormat(1)


class Landing:
    """An allocator that always hands out the same buffer, so that no page is touched for the first time."""

    def __init__(self) -> None:
        self.buffer = Buffer(np.zeros(max(SIZES), np.uint8))

    def allocate(self, shape: torch.Size, dtype: torch.dtype, fmt: MemoryFormat | None = None) -> Buffer:
        """Return the buffer."""
        return self.buffer


def connector(port: int, server: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop, landing: Landing) -> LMCServerConnector:
    """Return LMCache's connector without its engine's configuration."""
    made = LMCServerConnector.__new__(LMCServerConnector)
    made.client_socket = connected(port, server)
    made.loop = loop
    made.local_cpu_backend = landing
    made.async_socket_lock = asyncio.Lock()
    return made


def completed(loop: asyncio.AbstractEventLoop, operation: Callable[[], Coroutine[None, None, object]]) -> object:
    """Run one asynchronous operation to its end."""
    return loop.run_until_complete(operation())


async def acknowledged_put(peer: LMCServerConnector, key: CacheEngineKey, source: Buffer) -> None:
    """Put, and wait until the server has it."""
    await peer.put(key, source)
    assert await peer.exists(key)


def main() -> None:
    """Start the server, then measure get and put at every size."""
    announce(PEER, "lmcache", "torch", "numpy")
    port = free_port()
    loop = asyncio.new_event_loop()
    landing = Landing()
    command = [sys.executable, "-m", "lmcache.v1.server", "127.0.0.1", str(port), "cpu"]
    with tempfile.TemporaryDirectory() as folder, running(command, cwd=folder) as server:
        peer = connector(port, server, loop, landing)
        meter = Meter(PEER, [server.pid])
        for nbytes in SIZES:
            key, source = CacheEngineKey("model", 1, 0, nbytes, torch.uint8), Buffer(payload(nbytes))
            put, get = partial(acknowledged_put, peer, key, source), partial(peer.get, key)
            completed(loop, put)
            meter.measure("get", nbytes, partial(completed, loop, get))
            check(landing.buffer.array[:nbytes], source.array)
            meter.measure("put", nbytes, partial(completed, loop, put))


if __name__ == "__main__":
    main()
