"""Records in Redis or Valkey, in pieces of 1 MiB behind a small index record that is written last.

    larder:1:<storage key in hex>:i    the index: magic "KVPIECES", bytes per piece, pieces, bytes of the record, xxh3-128
    larder:1:<storage key in hex>:0    the first piece, and so on

The index is 40 bytes, little-endian; its digest covers the storage key and what stands before it. Redis may evict or expire any of these
keys at any time: a record whose index or any piece is missing is not there. Two writers of one key may mix their pieces; such a record
fails its own digests when it is read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Protocol

from kvstore.core.blob import Buffer, xxh3
from kvstore.core.errors import CapacityError, CorruptError, DeadlineError, MissingExtraError, TierUnavailableError
from kvstore.store.tier import Listed, Tier, TierInfo

PREFIX = b"larder:1:"
PIECE_NBYTES = 1 << 20
WINDOW = 8  # pieces per pipeline: what is in flight at once
MAX_LISTED = 10_000
_MAGIC = b"KVPIECES"
_INDEX = struct.Struct("<8sIIQ")
_INDEX_NBYTES = _INDEX.size + 16


class Pipeline(Protocol):
    """The few commands that the tier sends; replies come with `execute`."""

    def getrange(self, key: bytes, start: int, end: int) -> object: ...
    def set(self, name: bytes, value: Buffer, *, ex: int | None = None) -> object: ...
    def unlink(self, *names: bytes) -> object: ...
    def execute(self) -> list[bytes | int]: ...


class RedisClient(Protocol):
    """What the tier needs of a client: a single server, a cluster, or a double in a test."""

    def pipeline(self, transaction: bool) -> Pipeline: ...
    def scan_iter(self, match: bytes, count: int) -> Iterator[bytes]: ...
    def info(self, section: str) -> Mapping[str, object]: ...
    def close(self) -> None: ...


def connect(url: str, timeout_s: float = 0.5, cluster: str = "off") -> RedisClient:
    """Return a client for redis://, rediss:// (TLS) or unix:// that gives every exchange `timeout_s` seconds and never tries again.

    `cluster` is "off" or "on". Nothing is sent yet with a single server; a cluster is asked for its nodes and raises
    TierUnavailableError when it does not answer.
    """
    redis = _import_redis()
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    kind = redis.RedisCluster if cluster == "on" else redis.Redis
    with redis_errors("redis"):
        client: RedisClient = kind.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0), decode_responses=False
        )
    return client


def _import_redis() -> ModuleType:
    """Import redis-py, or say how to install it."""
    try:
        import redis
    except ImportError as error:
        raise MissingExtraError("the Redis tier needs the redis package; pip install 'kv-larder[store]'") from error
    return redis


@contextmanager
def redis_errors(tier: str) -> Iterator[None]:
    """Turn what redis-py raises into our errors."""
    from redis import exceptions

    try:
        yield
    except exceptions.TimeoutError as error:
        raise DeadlineError(f"tier {tier}: no answer in time ({error})") from error
    except exceptions.OutOfMemoryError as error:
        raise CapacityError(f"tier {tier}: Redis is full; raise its maxmemory or let it evict ({error})") from error
    except (exceptions.RedisError, OSError) as error:
        raise TierUnavailableError(f"tier {tier}: {error}") from error


class RedisTier(Tier):
    """Keeps records in Redis, which evicts by its own policy.

    Copies: put joins pieces only where they cross a border of 1 MiB; get makes two, the client library's and the record's. The length of
    every reply is bounded by asking for a range. Wrap it in a BreakerTier, so that a server that is down costs its deadline once.

    Parameters
    ----------
    connect : callable
        Returns a client; called once, at the first use, and again after a failure to connect.
    ttl_s : int
        Seconds after which a record expires; 0 for never.
    max_record_nbytes : int
        Longest record; a longer one is refused when put and held for damaged when an index tells of one.
    """

    def __init__(self, connect: Callable[[], RedisClient], ttl_s: int = 0, max_record_nbytes: int = 1 << 30, name: str = "redis") -> None:
        _import_redis()  # here and not within the first call, whose deadline it would eat
        self._connect = connect
        self._client: RedisClient | None = None
        self._expire_s = ttl_s or None
        self._max_record_nbytes = max_record_nbytes
        self._info = TierInfo(name, 0, is_remote=True)

    @property
    def info(self) -> TierInfo:
        return self._info

    @property
    def used_bytes(self) -> int:
        """Bytes that the server uses, for everybody who stores there."""
        with redis_errors(self._info.name):
            return int(str(self._connected().info("memory")["used_memory"]))

    def get(self, key: bytes) -> memoryview | None:
        """Fetch index and pieces into new memory; a record with a missing piece is removed and not there."""
        index = self._read_indexes([key])[0]
        if not index:
            return None
        nbytes = self._parse_index(key, index)
        record = memoryview(bytearray(nbytes))
        names = _piece_names(key, nbytes)
        for first in range(0, len(names), WINDOW):
            for number, piece in enumerate(self._ranges(names[first : first + WINDOW], PIECE_NBYTES), first):
                room = record[number * PIECE_NBYTES : (number + 1) * PIECE_NBYTES]
                if not piece:
                    self._unlink([_index_name(key), *names])
                    return None
                if len(piece) != room.nbytes:
                    raise CorruptError(f"tier {self._info.name}: piece {number} has {len(piece)} B, not {room.nbytes} B")
                room[:] = piece
        return record

    def put(self, key: bytes, pieces: Sequence[Buffer]) -> None:
        """Send the pieces, then the index that makes them visible."""
        nbytes = sum(len(piece) for piece in pieces)
        if nbytes > self._max_record_nbytes:
            raise CapacityError(f"tier {self._info.name}: a record of {nbytes} B is over the limit of {self._max_record_nbytes} B")
        if self._read_indexes([key])[0]:
            return
        names = _piece_names(key, nbytes)
        values = list(zip(names, regroup(pieces, PIECE_NBYTES), strict=True))
        try:
            for first in range(0, len(values), WINDOW):
                self._set(values[first : first + WINDOW])
            self._set([(_index_name(key), _make_index(key, nbytes))])
        except CapacityError:
            with suppress(TierUnavailableError, DeadlineError):
                self._unlink(names)
            raise

    def delete(self, key: bytes) -> bool:
        """Remove index and pieces; of a damaged index only the index, since nobody knows how many pieces there are."""
        index = self._read_indexes([key])[0]
        try:
            names = _piece_names(key, self._parse_index(key, index)) if index else []
        except CorruptError:
            names = []
        return self._unlink([_index_name(key), *names]) > 0

    def find(self, keys: Sequence[bytes]) -> list[int | None]:
        """Return lengths from the indexes, in one round trip; a piece may still turn out to be missing."""
        found: list[int | None] = []
        for key, index in zip(keys, self._read_indexes(keys), strict=True):
            try:
                found.append(self._parse_index(key, index) if index else None)
            except CorruptError:
                found.append(None)
        return found

    def scan(self) -> Iterator[Listed]:
        """Iterate over at most 10,000 records; metas are not read."""
        keys: list[bytes] = []
        with redis_errors(self._info.name):
            for name in self._connected().scan_iter(match=PREFIX + b"*:i", count=1000):
                with suppress(ValueError):
                    keys.append(bytes.fromhex(name[len(PREFIX) : -2].decode("ascii")))
                if len(keys) == MAX_LISTED:
                    break
        return (Listed(key, nbytes) for key, nbytes in zip(keys, self.find(keys), strict=True) if nbytes is not None)

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _connected(self) -> RedisClient:
        if self._client is None:
            self._client = self._connect()
        return self._client

    def _read_indexes(self, keys: Sequence[bytes]) -> list[bytes]:
        return self._ranges([_index_name(key) for key in keys], _INDEX_NBYTES)

    def _ranges(self, names: Sequence[bytes], nbytes: int) -> list[bytes]:
        """Return at most `nbytes` + 1 bytes of each value, b"" where there is none: one more than should be there shows a wrong length."""
        with redis_errors(self._info.name):
            pipeline = self._connected().pipeline(transaction=False)
            for name in names:
                pipeline.getrange(name, 0, nbytes)
            replies = pipeline.execute() if names else []
        return [reply if isinstance(reply, bytes) else b"" for reply in replies]

    def _set(self, values: Sequence[tuple[bytes, Buffer]]) -> None:
        with redis_errors(self._info.name):
            pipeline = self._connected().pipeline(transaction=False)
            for name, value in values:
                pipeline.set(name, value, ex=self._expire_s)
            pipeline.execute()

    def _unlink(self, names: Sequence[bytes]) -> int:
        """Remove keys, one command each since a cluster keeps them on different servers; return how many were there."""
        with redis_errors(self._info.name):
            pipeline = self._connected().pipeline(transaction=False)
            for name in names:
                pipeline.unlink(name)
            return sum(int(reply) for reply in pipeline.execute())

    def _parse_index(self, key: bytes, index: bytes) -> int:
        """Return the record's length in bytes; raises CorruptError for an index that is damaged or impossible."""
        if len(index) != _INDEX_NBYTES or xxh3(key, index[: _INDEX.size]) != index[_INDEX.size :]:
            raise CorruptError(f"tier {self._info.name}: the index of record {key.hex()[:16]} does not match its digest")
        magic, piece_nbytes, n_pieces, nbytes = _INDEX.unpack_from(index)
        if magic != _MAGIC or piece_nbytes != PIECE_NBYTES or n_pieces != -(-nbytes // PIECE_NBYTES) or nbytes > self._max_record_nbytes:
            raise CorruptError(f"tier {self._info.name}: the index tells of {n_pieces} pieces of {piece_nbytes} B for {nbytes} B")
        return int(nbytes)


def _index_name(key: bytes) -> bytes:
    return PREFIX + key.hex().encode() + b":i"


def _piece_names(key: bytes, nbytes: int) -> list[bytes]:
    stem = PREFIX + key.hex().encode() + b":"
    return [stem + str(number).encode() for number in range(-(-nbytes // PIECE_NBYTES))]


def _make_index(key: bytes, nbytes: int) -> bytes:
    index = _INDEX.pack(_MAGIC, PIECE_NBYTES, -(-nbytes // PIECE_NBYTES), nbytes)
    return index + xxh3(key, index)


def regroup(pieces: Sequence[Buffer], nbytes: int) -> Iterator[Buffer]:
    """Cut the pieces joined into consecutive pieces of `nbytes`, the last one shorter; copies only what crosses a border."""
    waiting: list[memoryview] = []
    room = nbytes
    for piece in pieces:
        view = memoryview(piece).cast("B")
        while view.nbytes:
            waiting.append(view[:room])
            view = view[waiting[-1].nbytes :]
            room -= waiting[-1].nbytes
            if not room:
                yield waiting[0] if len(waiting) == 1 else b"".join(waiting)
                waiting, room = [], nbytes
    if waiting:
        yield waiting[0] if len(waiting) == 1 else b"".join(waiting)
