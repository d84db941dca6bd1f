"""A pool of workers as an application of Ray Serve: what a RayService of KubeRay runs, and moves to a new cluster when it is upgraded.

Serve starts the pool and its front, and starts them elsewhere when their node dies. Questions do not go through Serve, whose proxy would
choose a replica without knowing who holds which passages: they go to the front's own port, on the node with the resource `FRONT`.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from ray import serve

from kvstore.server.config import load
from kvstore.server.logs import log_to_stderr
from kvworker.ray.command import pooled
from kvworker.ray.settings import FRONT
from kvworker.serve.config import ENV_PREFIX, WorkerConfig

_DRAIN_S = 600.0  # Serve waits so long for what drains by itself within `server.drain_s`


class ServedPool:
    """Serves from when it is made until it is deleted; the actors behind it live and die with it.

    Parameters
    ----------
    file : str
        The configuration of `larder worker`, which lies at this path on every node.
    """

    def __init__(self, file: str) -> None:
        config = load(WorkerConfig, (ENV_PREFIX,), Path(file))
        log_to_stderr(config.server.log_format)
        self._serving = ExitStack()
        self._front, _ = self._serving.enter_context(pooled(config))

    def address(self) -> str:
        """Return where the front listens."""
        return self._front.address

    def __del__(self) -> None:
        """Drain the front, then the workers."""
        self._serving.close()


def application(args: dict[str, str]) -> serve.Application:
    """Return what Serve deploys: one pool, configured by the file `args["config"]`."""
    front = {"num_cpus": 0, "resources": {FRONT: 1}}
    deploy = serve.deployment(ray_actor_options=front, graceful_shutdown_timeout_s=_DRAIN_S)
    return deploy(ServedPool).bind(args["config"])
