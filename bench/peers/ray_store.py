"""Ray's object store on one node: a get as a read-only view, the same copied into a reused buffer, and a put."""

from __future__ import annotations

import os
import time
from functools import partial

import numpy as np

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import psutil
import ray

from bench.peers.timing import MIB, SIZES, Bytes, Meter, announce, check, payload

PEER = "Ray"
SETTLE_S = 3.0  # the node's own processes are still starting when init returns


def main() -> None:
    """Start a node, then measure view, get and put at every size."""
    announce(PEER, "ray", "numpy")
    ray.init(
        address="local",  # never one that runs here already
        num_cpus=2,
        object_store_memory=2048 * MIB,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        _node_ip_address="127.0.0.1",
    )
    time.sleep(SETTLE_S)
    meter = Meter(PEER, [child.pid for child in psutil.Process().children()])
    for nbytes in SIZES:
        src, dst = payload(nbytes), np.zeros(nbytes, np.uint8)
        stored = ray.put(src)
        meter.measure("view", nbytes, partial(ray.get, stored))

        def get(stored: ray.ObjectRef = stored, dst: Bytes = dst) -> None:
            np.copyto(dst, ray.get(stored))

        meter.measure("get", nbytes, get)
        check(dst, src)
        meter.measure("put", nbytes, partial(ray.put, src))
    ray.shutdown()


if __name__ == "__main__":
    main()
