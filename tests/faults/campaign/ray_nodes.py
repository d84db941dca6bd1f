"""A worker on a Ray cluster beside a plant's other ones, for the long campaign: its nodes die with all that runs on them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.cluster_utils import Cluster

from kvworker.ray.pool import Pool
from kvworker.ray.settings import RaySettings
from kvworker.serve.config import ModelConfig, StoreAddress, WorkerConfig
from kvworker.settings import WorkerSettings
from tests.e2e.processes import data_dir
from tests.faults.campaign.plant import LISTENING, TIMEOUT_S, Plant
from tests.pool.scene import add_node, connected_cluster
from tests.worker.waiting import until

BACK_S = 120.0  # a process starts, imports and loads a model, beside everything else


class RayNodes:
    """A pool of one worker on two nodes, on the board of a plant."""

    def __init__(self, cluster: Cluster, pool: Pool) -> None:
        self._cluster, self._pool = cluster, pool

    def is_serving(self) -> bool:
        """Tell whether the worker takes requests."""
        return any(state.is_serving for state in self._pool.board.states({}) if state.name in self._pool.actors)

    @contextmanager
    def node_killed(self, plant: Plant, rng: random.Random) -> Iterator[None]:
        """The node with the worker dies; another one joins once the worker is back, for Ray gives a node 30 s to start and no more."""
        until(self.is_serving, BACK_S)
        (actor,) = self._pool.actors.values()
        at = ray.get(actor.node.remote(), timeout=BACK_S)
        (node,) = [node for node in self._cluster.worker_nodes if node.node_id == at]
        self._cluster.remove_node(node, allow_graceful=False)
        yield
        until(self.is_serving, BACK_S)
        add_node(self._cluster)


@contextmanager
def beside(plant: Plant) -> Iterator[RayNodes]:
    """Start a Ray cluster and a worker on it that shares the plant's stores, tokens and catalog."""
    config = WorkerConfig(
        str(data_dir(plant.home)),
        LISTENING,
        store=StoreAddress(plant.store_addresses, timeout_s=TIMEOUT_S),
        model=ModelConfig(device="cpu", threads=1),
        worker=WorkerSettings(device_bytes=0),
        ray=RaySettings(workers=1, host="127.0.0.1"),
    )
    with connected_cluster(head_cpus=0) as cluster:
        pool = Pool(config, plant.board)
        try:
            pool.start()
            nodes = RayNodes(cluster, pool)
            until(nodes.is_serving, BACK_S)
            yield nodes
        finally:
            pool.close()
