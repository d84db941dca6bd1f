"""One worker of a pool: what runs in an actor's process.

Ray places it, starts it again when it dies, and passes its address on; questions and answers do not go through Ray. The actor listens as
any worker does, so that deadlines, cancelling, back pressure, TLS and tokens are the same with Ray and without.
"""

from __future__ import annotations

import os
from dataclasses import replace

import ray

from kvstore.core.allocator import leave_alone
from kvworker.ray.settings import beside_others
from kvworker.serve.config import WorkerConfig


class WorkerActor:
    """Serves a worker on a free port of its node for as long as the actor lives."""

    def __init__(self, config: WorkerConfig) -> None:
        from kvworker.serve.processes import ServedWorker, prepare  # torch, in the actor's process only

        prepare(config.server)
        host = config.ray.host or ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self._served = ServedWorker(replace(config, server=beside_others(config.server, host)))
        leave_alone()

    def address(self) -> str:
        """Return where the worker listens."""
        return self._served.address

    def node(self) -> str:
        """Return the id of the node that it runs on."""
        return str(ray.get_runtime_context().get_node_id())

    def process(self) -> int:
        """Return the process id."""
        return os.getpid()

    def stop(self) -> None:
        """Let running calls finish for a while and close the worker."""
        self._served.close()
