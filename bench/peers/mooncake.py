"""The Mooncake store over TCP loopback: a master, a process that owns the storage, and this client, which owns none.

Get lands in a registered, reused buffer. Put goes from a registered buffer into storage that was written before: the object is removed
after each put, outside its time, so that the next one takes the same place; a fresh place costs about twice as much.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from functools import partial

import numpy as np

from bench.peers.timing import MIB, SIZES, Bytes, Meter, announce, check, connected, free_port, payload, running

try:
    from mooncake.store import MooncakeDistributedStore
except ImportError as error:
    if "libibverbs" in str(error):
        raise SystemExit("the system library libibverbs.so.1 is missing: apt-get install libibverbs1") from error
    raise

PEER = "Mooncake"
SEGMENT_BYTES = 2048 * MIB
START_S = 30.0


def store(master: str, segment_bytes: int, buffer_bytes: int) -> MooncakeDistributedStore:
    """Return a client of the master that lends it `segment_bytes` of storage."""
    made = MooncakeDistributedStore()
    host = f"127.0.0.1:{free_port()}"
    if status := made.setup(host, "P2PHANDSHAKE", segment_bytes, buffer_bytes, "tcp", "", master):
        raise SystemExit(f"setup of the Mooncake client failed with status {status}")
    return made


def own(master: str) -> None:
    """Lend storage until standard input ends."""
    lent = store(master, SEGMENT_BYTES, 64 * MIB)
    sys.stdin.read()
    del lent
    os._exit(0)  # its own threads outlive the interpreter


def first_put(client: MooncakeDistributedStore, key: str, buffer: Bytes) -> None:
    """Put as soon as the owner has lent its storage."""
    deadline = time.monotonic() + START_S
    while (status := client.put_from(key, buffer.ctypes.data, buffer.nbytes)) < 0:
        if time.monotonic() > deadline:
            raise SystemExit(f"no storage was lent within {START_S:.0f} s; the last put failed with status {status}")
        time.sleep(0.2)


def measure(client: MooncakeDistributedStore, meter: Meter) -> None:
    """Measure get and put at every size."""
    for nbytes in SIZES:
        src, dst, key = payload(nbytes), np.zeros(nbytes, np.uint8), f"stored-{nbytes}"
        for buffer in (src, dst):
            if status := client.register_buffer(buffer.ctypes.data, nbytes):
                raise SystemExit(f"registering a buffer of {nbytes} B failed with status {status}")
        first_put(client, key, src)
        meter.measure("get", nbytes, partial(client.get_into, key, dst.ctypes.data, dst.nbytes))
        check(dst, src)

        def put(src: Bytes = src) -> None:
            status = client.put_from("again", src.ctypes.data, src.nbytes)
            assert status >= 0, status

        meter.measure("put", nbytes, put, tidy=partial(client.remove, "again"))
        for buffer in (src, dst):
            client.unregister_buffer(buffer.ctypes.data)


def main() -> None:
    """Start master and owner, then measure."""
    announce(PEER, "mooncake-transfer-engine-non-cuda", "numpy")
    port, metrics_port = free_port(), free_port()
    binary = os.path.join(os.path.dirname(sys.executable), "mooncake_master")
    flags = [f"--rpc_port={port}", f"--metrics_port={metrics_port}", "--rpc_address=127.0.0.1", "--metrics_host=127.0.0.1"]
    flags += ["--enable_metric_reporting=false", "--default_kv_lease_ttl=5000"]
    master = f"127.0.0.1:{port}"
    owner_command = [sys.executable, "-m", "bench.peers.mooncake", "own", master]
    with tempfile.TemporaryDirectory() as folder, running([binary, *flags], cwd=folder) as master_process:
        connected(port, master_process).close()
        with running(owner_command) as owner:
            client = store(master, 0, 512 * MIB)
            measure(client, Meter(PEER, [master_process.pid, owner.pid]))
    sys.stdout.flush()
    os._exit(0)  # the client's threads outlive the interpreter


if __name__ == "__main__":
    own(sys.argv[2]) if sys.argv[1:2] == ["own"] else main()
