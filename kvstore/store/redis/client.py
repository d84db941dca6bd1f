"""What we need of redis-py: everything that carries no record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Protocol

from kvstore.core.errors import CapacityError, DeadlineError, MissingExtraError, TierUnavailableError


class Control(Protocol):
    """The part of its client that is used."""

    def execute_command(self, *words: str) -> object: ...
    def scan_iter(self, match: bytes, count: int) -> Iterator[bytes]: ...
    def info(self, section: str) -> Mapping[str, object]: ...
    def close(self) -> None: ...


def import_redis() -> ModuleType:
    """Import redis-py, or say how to install it."""
    try:
        import redis
    except ImportError as error:
        raise MissingExtraError("the Redis tier needs the redis package; pip install 'kv-larder[store]'") from error
    return redis


@contextmanager
def redis_errors(where: str) -> Iterator[None]:
    """Turn what redis-py raises into our errors."""
    from redis import exceptions

    try:
        yield
    except exceptions.TimeoutError as error:
        raise DeadlineError(f"{where}: no answer in time ({error})") from error
    except exceptions.OutOfMemoryError as error:
        raise CapacityError(f"{where}: Redis is full; raise its maxmemory or let it evict ({error})") from error
    except (exceptions.RedisError, OSError) as error:
        raise TierUnavailableError(f"{where}: {error}") from error
