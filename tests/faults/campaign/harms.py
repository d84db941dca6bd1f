"""What is done to a plant, one thing at a time: each begins with its block and is mended with the end of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from kvclient import Larder
from kvstore.core.errors import DeadlineError, NotFoundError, TierUnavailableError
from tests.e2e.processes import Process, kill
from tests.faults.campaign.footprint import reading
from tests.faults.campaign.plant import Plant
from tests.faults.campaign.wire import Harm, Wire
from tests.redis_server import RedisServer
from tests.worker.waiting import until

Fault = Callable[[Plant, random.Random], AbstractContextManager[None]]
_DISK_ERRORS = 'larder_tier_errors_total{tier="disk"}'
_TAKES_OVER_S = 20.0
_NOTICES_S = 20.0


@contextmanager
def store_killed(plant: Plant, rng: random.Random) -> Iterator[None]:
    """SIGKILL, and a restart at the same address."""
    store = rng.choice(plant.stores)
    kill(store.process)
    yield
    plant.restart(store)


@contextmanager
def store_skewed(plant: Plant, rng: random.Random) -> Iterator[None]:
    """A store restarts with a clock that is two hours ahead, and later with the right one."""
    store = rng.choice(plant.stores)
    kill(store.process)
    plant.restart_skewed(store)
    yield
    kill(store.process)
    plant.restart(store)


@contextmanager
def worker_killed(plant: Plant, rng: random.Random) -> Iterator[None]:
    """SIGKILL, and a restart at the same address."""
    worker = rng.choice(plant.workers)
    kill(worker.process)
    yield
    plant.restart(worker)


@contextmanager
def disk_full(plant: Plant, rng: random.Random) -> Iterator[None]:
    """Nothing more fits on the disk of the first store, to which documents are given meanwhile; what lies behind the disk is gone."""
    store = plant.stores[0].process
    n_before = reading(store.pages, _DISK_ERRORS)
    with plant.disk.full(store.popen.pid):
        plant.redis.command("FLUSHALL")
        with plant.larder() as larder:
            until(lambda: _is_refused(larder, store, n_before, rng), _NOTICES_S)
        yield


def _is_refused(larder: Larder, store: Process, n_before: int, rng: random.Random) -> bool:
    """Give some store a document that nobody knows, take it back, and tell whether the disk has refused more than it had before.

    It may be late, but it is not refused for want of room: where all the memory of a store is leased, Redis takes it.
    """
    with suppress(DeadlineError, TierUnavailableError, NotFoundError):
        larder.ingest("nobody-asks.txt", [f"Nobody asks about number {rng.getrandbits(64)}."], timeout_s=2.0)
        larder.forget("nobody-asks.txt")
    return reading(store.pages, _DISK_ERRORS) > n_before


@contextmanager
def redis_paused(plant: Plant, rng: random.Random) -> Iterator[None]:
    """SIGSTOP: connections stand and nothing comes."""
    redis = _redis(plant, rng)
    redis.pause()
    yield
    redis.resume()


@contextmanager
def redis_killed(plant: Plant, rng: random.Random) -> Iterator[None]:
    """SIGKILL; it comes back empty."""
    plant.redis.stop()
    yield
    plant.redis.start()


@contextmanager
def master_killed(plant: Plant, rng: random.Random) -> Iterator[None]:
    """SIGKILL of a master of the cluster; its replica takes its place, and it comes back as a replica of that."""
    until(plant.cluster.is_whole, _TAKES_OVER_S)
    master = rng.choice(plant.cluster.masters())
    master.stop()
    until(lambda: len(plant.cluster.masters()) == 3, _TAKES_OVER_S)
    yield
    master.start()


@contextmanager
def redis_full(plant: Plant, rng: random.Random) -> Iterator[None]:
    """It takes no more and evicts nothing."""
    redis = _redis(plant, rng)
    redis.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    redis.command("CONFIG", "SET", "maxmemory", "1mb")
    yield
    redis.command("CONFIG", "SET", "maxmemory", "0")


@contextmanager
def redis_flushed(plant: Plant, rng: random.Random) -> Iterator[None]:
    """It forgets everything, twice."""
    redis = _redis(plant, rng)
    redis.command("FLUSHALL")
    yield
    redis.command("FLUSHALL")


def network(harm: Harm, wires: Callable[[Plant], list[Wire]]) -> Fault:
    """Return a harm to one of several networks."""

    @contextmanager
    def harmed(plant: Plant, rng: random.Random) -> Iterator[None]:
        wire = rng.choice(wires(plant))
        wire.harm(harm)
        yield
        wire.mend()

    return harmed


def _redis(plant: Plant, rng: random.Random) -> RedisServer:
    """Choose the Redis of the first store, or a master of the cluster."""
    return rng.choice([plant.redis, rng.choice(plant.cluster.masters())])


def _to_stores(plant: Plant) -> list[Wire]:
    return [node.wire for node in plant.stores]


def _to_workers(plant: Plant) -> list[Wire]:
    return [node.wire for node in plant.workers]


FAULTS: dict[str, Fault] = {
    "store killed": store_killed,
    "store's clock skewed": store_skewed,
    "worker killed": worker_killed,
    "disk full": disk_full,
    "redis killed": redis_killed,
    "redis paused": redis_paused,
    "redis full": redis_full,
    "redis flushed": redis_flushed,
    "redis cluster master killed": master_killed,
    **{f"network to a store: {harm.value}": network(harm, _to_stores) for harm in Harm},
    **{f"network to redis: {harm.value}": network(harm, lambda plant: [plant.to_redis]) for harm in Harm},
    # Flipped bits of an answer in plain text are the answer, to a client: where they can happen, workers serve TLS.
    **{f"network to a worker: {harm.value}": network(harm, _to_workers) for harm in Harm if harm is not Harm.FLIP},
}
