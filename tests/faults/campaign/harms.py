"""What is done to a plant, one thing at a time: each begins with its block and is mended with the end of it."""

from __future__ import annotations

import random
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tests.e2e.processes import kill
from tests.faults.campaign.plant import SKEWED, Plant, StoreNode
from tests.faults.campaign.wire import Harm, Wire

Fault = Callable[[Plant, random.Random], AbstractContextManager[None]]
_FULL_NBYTES = 4096  # of a file: what is written beyond fails, as on a full disk


@contextmanager
def store_killed(plant: Plant, rng: random.Random) -> Iterator[None]:
    """SIGKILL, and a restart at the same address."""
    number = rng.randrange(len(plant.stores))
    kill(plant.stores[number].process)
    yield
    plant.restart_store(number)


@contextmanager
def store_skewed(plant: Plant, rng: random.Random) -> Iterator[None]:
    """A store restarts with a clock that is two hours ahead, and later with the right one."""
    number = rng.randrange(len(plant.stores))
    kill(plant.stores[number].process)
    plant.restart_store(number, SKEWED)
    yield
    kill(plant.stores[number].process)
    plant.restart_store(number)


@contextmanager
def worker_killed(plant: Plant, rng: random.Random) -> Iterator[None]:
    """SIGKILL, and a restart at the same address."""
    number = rng.randrange(len(plant.workers))
    kill(plant.workers[number])
    yield
    plant.restart_worker(number)


@contextmanager
def redis_paused(plant: Plant, rng: random.Random) -> Iterator[None]:
    """SIGSTOP: connections stand and nothing comes."""
    redis = _node(plant, rng).redis
    redis.pause()
    yield
    redis.resume()


@contextmanager
def redis_killed(plant: Plant, rng: random.Random) -> Iterator[None]:
    """SIGKILL; it comes back empty."""
    redis = _node(plant, rng).redis
    redis.stop()
    yield
    redis.start()


@contextmanager
def redis_full(plant: Plant, rng: random.Random) -> Iterator[None]:
    """It takes no more and evicts nothing."""
    redis = _node(plant, rng).redis
    redis.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    redis.command("CONFIG", "SET", "maxmemory", "1mb")
    yield
    redis.command("CONFIG", "SET", "maxmemory", "0")


@contextmanager
def redis_flushed(plant: Plant, rng: random.Random) -> Iterator[None]:
    """It forgets everything, twice."""
    redis = _node(plant, rng).redis
    redis.command("FLUSHALL")
    yield
    redis.command("FLUSHALL")


@contextmanager
def disk_full(plant: Plant, rng: random.Random) -> Iterator[None]:
    """No file of a store grows beyond a page, and what was written is gone from memory soon."""
    node = _node(plant, rng)
    pid = node.process.popen.pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (_FULL_NBYTES, before[1]))
    node.redis.command("FLUSHALL")
    yield
    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def network(harm: Harm, wire_of: Callable[[StoreNode], Wire]) -> Fault:
    """Return a harm to one of a store's networks."""

    @contextmanager
    def harmed(plant: Plant, rng: random.Random) -> Iterator[None]:
        wire = wire_of(_node(plant, rng))
        wire.harm(harm)
        yield
        wire.mend()

    return harmed


def _node(plant: Plant, rng: random.Random) -> StoreNode:
    return rng.choice(plant.stores)


FAULTS: dict[str, Fault] = {
    "store killed": store_killed,
    "store's clock skewed": store_skewed,
    "worker killed": worker_killed,
    "disk full": disk_full,
    "redis killed": redis_killed,
    "redis paused": redis_paused,
    "redis full": redis_full,
    "redis flushed": redis_flushed,
    **{f"network to the store: {harm.value}": network(harm, lambda node: node.to_store) for harm in Harm},
    **{f"network to redis: {harm.value}": network(harm, lambda node: node.to_redis) for harm in Harm},
}
