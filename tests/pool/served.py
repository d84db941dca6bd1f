"""Serve a pool as Ray Serve does, ask it one question, and say what came of it: `python -m tests.pool.served CONFIG STORE_TOKEN`.

A process of its own: Ray is connected once per process, and Serve's settings hold for all of it.
"""

from __future__ import annotations

import importlib
import json
import sys

from kvclient import Larder

APPLICATION = "kvworker.ray.serving:application"
"""Where Serve finds it, as the chart says."""


def main(config: str, token: str) -> None:
    """Print a line of JSON once everything has ended: where the front listened, and the answer's tokens."""
    import ray
    from ray import serve

    ray.init("local", num_cpus=2, resources={"larder-front": 1}, include_dashboard=False, object_store_memory=80 << 20, log_to_driver=False)
    serve.start(proxy_location="Disabled")
    module, _, name = APPLICATION.partition(":")
    handle = serve.run(getattr(importlib.import_module(module), name)({"config": config}), name="larder")
    address = handle.address.remote().result(timeout_s=60)
    with Larder(address, token, timeout_s=60.0) as larder:
        passages = larder.ingest("a.txt", ["Nora lives in Oslo."]).passages
        tokens = [each.id for each in larder.ask([passages[0].id], "Where does Nora live?", max_tokens=4).finish().tokens]
    serve.shutdown()
    ray.shutdown()
    print(json.dumps({"address": address, "tokens": tokens}))


if __name__ == "__main__":
    main(*sys.argv[1:])
