"""Records in Redis or Valkey, one server or a cluster; `kvstore.store.redis.record` says how they lie there.

Redis may evict or expire any key at any time: a record whose index or any piece is missing is not there. Two writers of one key may mix
their pieces; such a record fails its own digests when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

from kvstore.core.blob import Buffer
from kvstore.core.errors import CapacityError, CorruptError, DeadlineError, KVError, TierUnavailableError
from kvstore.core.landing import PIECE_NBYTES, Landing
from kvstore.core.pool import BufferPool
from kvstore.store.redis.client import Control
from kvstore.store.redis.dial import Dialer
from kvstore.store.redis.exchange import Answer, Command, exchange, first_problem
from kvstore.store.redis.landing import PiecesLanding, discard
from kvstore.store.redis.node import Leases
from kvstore.store.redis.record import (
    INDEX_NBYTES,
    PREFIX,
    ask_range,
    index_name,
    key_of_index,
    make_index,
    parse_index,
    piece_names,
    regroup,
)
from kvstore.store.redis.route import Cluster, OneServer, Route
from kvstore.store.redis.settings import RedisSettings
from kvstore.store.tier import Listed, Tier, TierInfo

T = TypeVar("T")
MAX_LISTED = 10_000
_BATCH_PIECES = 64  # a server that is full learns of at most so many pieces in vain
_POOL_NBYTES = 64 << 20


class RedisTier(Tier):
    """Keeps records in Redis, which evicts by its own policy.

    Copies: get and put make one, the kernel's, between socket and record; TLS one more. Connects at the first use. Wrap
    it in a BreakerTier, so that a server that is down costs its deadline once; a cluster is not wrapped, since each of its nodes has a
    breaker of its own, and records that are wholly on living nodes are served whatever happens to the others.

    Parameters
    ----------
    settings : RedisSettings
        Where Redis is and how it is spoken to.
    max_record_nbytes : int
        Longest record; a longer one is refused when put and held for damaged when an index tells of one.
    pool : BufferPool or None
        Where the memory of records comes from that are read; None for a pool of its own that keeps 64 MiB.
    """

    def __init__(
        self, settings: RedisSettings, max_record_nbytes: int = 1 << 30, pool: BufferPool | None = None, name: str = "redis"
    ) -> None:
        dialer = Dialer(settings)
        self._settings = settings
        self._route: Route = Cluster(dialer) if settings.cluster == "on" else OneServer(dialer)
        self._ahead_nbytes = dialer.ahead_nbytes
        self._max_record_nbytes = max_record_nbytes
        self._pool = pool or BufferPool(_POOL_NBYTES)
        self._info = TierInfo(name, 0, is_remote=True)

    @property
    def info(self) -> TierInfo:
        return self._info

    @property
    def used_bytes(self) -> int:
        """Bytes that the servers use that answer, for everybody who stores there."""
        return sum(self._ask_nodes(lambda control: int(str(control.info("memory")["used_memory"]))))

    @property
    def n_resting(self) -> int:
        return self._route.n_resting

    def get(self, key: bytes) -> Landing | None:
        """Read the index, in one round trip with the record's front when there is one server only, and begin to receive the pieces.

        The landing raises EvictedError and removes the record when a piece is missing.
        """
        if self._settings.cluster == "on":
            index = self._read_index(key)
            return self._land(key, index, None) if index else None
        owner = self._route.node_of(b"")
        leases = Leases([owner])
        leases.require()
        try:
            leases[owner].ask(*_read(key))
            leases[owner].ask(*ask_range(piece_names(key, 1), 0))
            index = self._bytes_of(leases[owner].reply())
            if not index:
                discard(leases, owner)
                return None
            return self._land(key, index, leases)
        except BaseException:
            leases.close()
            raise

    def put(self, key: bytes, pieces: Sequence[Buffer]) -> None:
        """Send the pieces, a window ahead of their replies, and behind them the index that makes them visible. Copies nothing."""
        nbytes = sum(memoryview(piece).nbytes for piece in pieces)
        if nbytes > self._max_record_nbytes:
            raise CapacityError(f"tier {self._info.name}: a record of {nbytes} B is over the limit of {self._max_record_nbytes} B")
        if self._read_index(key):
            return
        values = zip(piece_names(key, nbytes), regroup(pieces, PIECE_NBYTES), strict=True)
        commands = [self._set(name, value) for name, value in values]
        index = self._set(index_name(key), [memoryview(make_index(key, nbytes))])
        if self._settings.cluster == "off":
            commands.append(index)  # one server takes its commands in order
        for first in range(0, len(commands), _BATCH_PIECES):
            self._send(commands, first, first + _BATCH_PIECES)
        if self._settings.cluster == "on":
            self._send([*commands, index], len(commands), len(commands) + 1)

    def delete(self, key: bytes) -> bool:
        """Remove index and pieces; of a damaged index only the index, since nobody knows how many pieces there are.

        The record is gone when its index is; pieces on a node of a cluster that does not answer are left to expire.
        """
        try:
            index = self._read_index(key)
        except CorruptError:  # something else stands there
            return self._remove(key, b"")
        return self._remove(key, index) if index else False

    def find(self, keys: Sequence[bytes]) -> list[int | None]:
        """Return lengths from the indexes, in one round trip; a piece may still turn out to be missing.

        Keys on a node of a cluster that does not answer are not there; raises only when no node answers.
        """
        answers = exchange(self._route, [_read(key) for key in keys])
        if answers and all(isinstance(answer, KVError) for answer in answers):
            self._bytes_of(answers[0])
        found: list[int | None] = []
        for key, answer in zip(keys, answers, strict=True):
            try:
                index = b"" if isinstance(answer, KVError) else self._bytes_of(answer)
                found.append(parse_index(key, index, self._max_record_nbytes) if index else None)
            except CorruptError:
                found.append(None)
        return found

    def scan(self) -> Iterator[Listed]:
        """Iterate over at most 10,000 records of the nodes that answer; metas are not read."""
        keys = [key for listed in self._ask_nodes(_list_keys) for key in listed][:MAX_LISTED]
        return (Listed(key, nbytes) for key, nbytes in zip(keys, self.find(keys), strict=True) if nbytes is not None)

    def close(self) -> None:
        self._route.close()

    def _land(self, key: bytes, index: bytes, leases: Leases | None) -> Landing:
        """Begin to receive a record; with `leases` there is one server, and the first range was asked for already."""
        nbytes = parse_index(key, index, self._max_record_nbytes)
        room = self._pool.take(nbytes)
        return PiecesLanding(room, piece_names(key, nbytes), self._route, self._ahead_nbytes, lambda: self._forget(key, index), leases)

    def _forget(self, key: bytes, index: bytes) -> None:
        """Remove what is left of a record; that it could not be removed says nothing new."""
        with suppress(TierUnavailableError, DeadlineError):
            self._remove(key, index)

    def _remove(self, key: bytes, index: bytes) -> bool:
        """Remove a record by its index, one command for each of its keys since a cluster keeps them on different servers."""
        try:
            names = piece_names(key, parse_index(key, index, self._max_record_nbytes))
        except CorruptError:
            names = []
        answers = exchange(self._route, [(b"UNLINK", name) for name in (index_name(key), *names)])
        if problem := first_problem(answers[:1], f"tier {self._info.name}"):
            raise problem
        return answers[0] == 1

    def _send(self, commands: Sequence[Command], first: int, end: int) -> None:
        """Send some of a record's commands; raises their first problem, behind removing what the others stored."""
        answers = exchange(self._route, commands[first:end], self._ahead_nbytes // PIECE_NBYTES + 2)
        if problem := first_problem(answers, f"tier {self._info.name}"):
            self._clean_up(commands[:end], problem)
            raise problem

    def _clean_up(self, commands: Sequence[Command], problem: KVError) -> None:
        """Remove the pieces of a put that failed; a single server that did not answer is not asked again."""
        if self._settings.cluster == "on" or isinstance(problem, CapacityError):
            exchange(self._route, [(b"UNLINK", command[1]) for command in commands])

    def _read_index(self, key: bytes) -> bytes:
        return self._bytes_of(exchange(self._route, [_read(key)])[0])

    def _bytes_of(self, answer: Answer) -> bytes:
        """Return a value, b"" where there is none; raises what the answer says otherwise."""
        if problem := first_problem([answer], f"tier {self._info.name}"):
            raise problem
        if isinstance(answer, int):
            raise TierUnavailableError(f"tier {self._info.name}: {answer} came where a value was asked for")
        return answer if isinstance(answer, bytes) else b""

    def _set(self, name: bytes, value: list[memoryview]) -> Command:
        ttl_s = self._settings.ttl_s
        return (b"SET", name, value, b"EX", str(ttl_s).encode()) if ttl_s else (b"SET", name, value)

    def _ask_nodes(self, ask: Callable[[Control], T]) -> list[T]:
        """Return what the nodes say that answer; raises the first error when none does."""
        said: list[T] = []
        errors: list[KVError] = []
        for node in self._route.nodes():
            try:
                said.append(node.ask_control(ask))
            except (TierUnavailableError, DeadlineError) as error:
                errors.append(error)
        if errors and not said:
            raise errors[0]
        return said


def _read(key: bytes) -> Command:
    """Return the command for an index: at most one byte more than it should have, which shows a wrong length."""
    return (b"GETRANGE", index_name(key), b"0", str(INDEX_NBYTES).encode())


def _list_keys(control: Control) -> list[bytes]:
    """Return the storage keys of at most 10,000 indexes on one server."""
    keys: list[bytes] = []
    for name in control.scan_iter(match=PREFIX + b"*:i", count=1000):
        with suppress(ValueError):
            keys.append(key_of_index(name))
        if len(keys) == MAX_LISTED:
            break
    return keys
