"""How a pool of workers is spread over a Ray cluster; checked when built, without Ray."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from kvstore.core.errors import ConfigError
from kvstore.server.config import ServerConfig

FRONT = "larder-front"
"""Under Ray Serve, a resource of the one node that callers reach: only the front asks for it."""


@dataclass(frozen=True)
class RaySettings:
    """A pool of worker actors.

    Parameters
    ----------
    workers, most_workers : int
        Actors that there are always, and at most while requests wait; 0 as the most means always the same number.
    cpus, gpus : float
        What Ray sets aside for each actor, on one node.
    resources : str
        Custom resources of each actor, as "name=1,other=0.5".
    host : str
        Where actors listen: an address of each node; "" is the one that Ray knows it by. Other than loopback, it needs `server.tls` or
        `server.allow_plaintext`, as every listener.
    ca, server_name : str
        With `server.tls`: the authority that signed the workers' certificates, and the name in them. With `client_ca`, the front shows
        `server.tls.cert`, which then has to be good for clients.
    start_s : float
        How long the first actor may take to load the model, or to get a place on the cluster.
    waiting_per_worker : float
        Another actor is started when more requests than this wait at each; one is stopped when a worker less would have half of it.
    """

    workers: int = 2
    most_workers: int = 0
    cpus: float = 1.0
    gpus: float = 0.0
    resources: str = ""
    host: str = ""
    ca: str = ""
    server_name: str = ""
    start_s: float = 300.0
    waiting_per_worker: float = 4.0

    def __post_init__(self) -> None:
        if self.workers < 1 or (self.most_workers and self.most_workers < self.workers):
            raise ConfigError(f"ray.workers is at least 1 and ray.most_workers 0 or no less, got {self.workers} and {self.most_workers}")
        if min(self.cpus, self.gpus) < 0 or min(self.start_s, self.waiting_per_worker) <= 0:
            raise ConfigError("ray.cpus and ray.gpus are 0 or more, ray.start_s and ray.waiting_per_worker above 0")
        self.custom  # noqa: B018 (raises ConfigError)

    @property
    def custom(self) -> Mapping[str, float]:
        """The custom resources by name; raises ConfigError for what is no list of them."""
        found: dict[str, float] = {}
        for part in filter(None, self.resources.split(",")):
            name, _, amount = part.partition("=")
            try:
                found[name.strip()] = float(amount)
            except ValueError:
                found[name.strip()] = math.nan
            if not name.strip() or not 0 < found[name.strip()] < math.inf:
                raise ConfigError(f"ray.resources is a list such as name=1,other=0.5; {part!r} is no part of one")
        return found


def beside_others(server: ServerConfig, host: str) -> ServerConfig:
    """Return how an actor's server listens: as it is configured, on free ports of its node."""
    metrics_host = server.metrics_address.rpartition(":")[0]
    return replace(server, address=f"{host}:0", metrics_address=f"{metrics_host}:0" if metrics_host else "")
