"""The catalog that several workers share: one Redis (or Valkey) server, edited in transactions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from kvstore.core.errors import ClosedError, ConfigError, CorruptError, TierUnavailableError
from kvstore.store.redis.client import import_redis, redis_errors
from kvstore.store.redis.settings import read_url
from kvworker.ingest.catalog import Catalog, Place, pack, too_many, unpack
from kvworker.ingest.passages import READ_AS, Known, Passage
from kvworker.ingest.redis_records import (
    Added,
    Change,
    Head,
    Names,
    Source,
    holders_after,
    kept_beside,
    n_same_at_start,
    place_from_bytes,
    place_to_bytes,
    with_ancestors,
)

_MOST_TRIES = 64
_WHOLE = 64  # hex digits of a whole identity
_PAGE = 256  # sources that a listing reads at once
Redis = Any
"""A client or pipeline of redis-py, which is typed for synchronous and asynchronous use at once."""


class RedisCatalog(Catalog):
    """Passages of one model in Redis, for all workers that name it: each answers for what any of them ingested.

    An edit is a transaction that is tried again when another worker was faster. Every command has a deadline; what Redis does not answer
    raises TierUnavailableError or DeadlineError, and a Redis that may evict is refused, because a catalog is no cache.

    Parameters
    ----------
    url : str
        redis://, rediss:// or unix://, as for the Redis tier; one server, not a Cluster.
    timeout_s : float
        Most seconds for connecting and for each reply.
    """

    def __init__(self, namespace: bytes, url: str, capacity_bytes: int = 1 << 30, timeout_s: float = 2.0) -> None:
        super().__init__(namespace, capacity_bytes)
        redis = import_redis()
        read_url(url)  # says what is wrong with it without repeating its password
        self._watch_error = redis.exceptions.WatchError
        self._is_closed = False
        self._redis: Redis = redis.Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=_once_more())
        try:
            self._check_policy()
        except BaseException:
            self._redis.close()
            raise

    def add(self, tenant: str, source: str, placed: Mapping[str, Sequence[Passage]], behind: Iterable[Passage] = ()) -> list[bytes]:
        passages = {p.content: p for p in (*behind, *(p for each in placed.values() for p in each))}
        return self._edit(tenant, lambda redis, names: self._adding(redis, names, source, placed, passages))

    def forget(self, tenant: str, source: str) -> list[bytes]:
        return self._edit(tenant, lambda redis, names: self._forgetting(redis, names, source))

    def listing(self, tenant: str, source: str = "", limit: int = 1000) -> list[Passage]:
        names = Names.of(tenant, self._namespace)
        found: list[tuple[Place, bytes]] = []
        with self._answers() as redis:
            for page in [[source]] if source else _pages(redis, names):
                records = redis.mget([names.source(each) for each in page]) if page else []
                for each, record in zip(page, records, strict=True):
                    found += [((each, i), content) for i, content in enumerate(Source.from_bytes(record, each).in_order())]
                if len(found) >= limit:
                    break
            passages = self._passages(redis, names, [content for _, content in found[:limit]])
        placed = [(place, passages.get(content)) for place, content in found[:limit]]
        return [replace(p, source=place[0], index=place[1]) for place, p in placed if p is not None]

    def close(self) -> None:
        self._is_closed = True
        self._redis.close()

    def _with_start(self, tenant: str, digits: str) -> list[Passage]:
        names = Names.of(tenant, self._namespace)
        with self._answers() as redis:
            low, high = b"[" + digits.encode(), b"[" + digits.encode() + b"g"  # behind every hex digit
            ids = [digits] if len(digits) == _WHOLE else map(bytes.decode, redis.zrangebylex(names.ids, low, high, start=0, num=2))
            return list(self._passages(redis, names, list(map(bytes.fromhex, ids))).values())

    def _standing(self, tenant: str, places: Sequence[Place]) -> dict[Place, Passage]:
        names, sources = Names.of(tenant, self._namespace), list(dict.fromkeys(source for source, _ in places))
        if not sources:
            return {}
        with self._answers() as redis:
            records = redis.mget([names.source(each) for each in sources])
            known = {each: Source.from_bytes(record, each) for each, record in zip(sources, records, strict=True)}
            wanted = {place: content for place in places if (content := known[place[0]].standing(place[1])) is not None}
            passages = self._passages(redis, names, list(wanted.values()))
        return {
            place: replace(passages[content], source=place[0], index=place[1]) for place, content in wanted.items() if content in passages
        }

    def _of_contents(self, tenant: str, contents: Sequence[bytes]) -> dict[bytes, Passage]:
        names, asked = Names.of(tenant, self._namespace), [(c, read_as) for c in contents for read_as in READ_AS]
        if not asked:
            return {}
        places: dict[bytes, list[Place]] = {}
        with self._answers() as redis, redis.pipeline(transaction=False) as pipe:
            found = self._passages(redis, names, contents)
            for content, read_as in asked:
                pipe.zrange(names.at(read_as, content), 0, 0)
            for (content, _), members in zip(asked, pipe.execute(), strict=True):
                places.setdefault(content, []).extend(map(place_from_bytes, members))
        first = {content: min(each) for content, each in places.items() if each and content in found}
        return found | {content: replace(found[content], source=place[0], index=place[1]) for content, place in first.items()}

    def _known(self, tenant: str, contents: Sequence[bytes]) -> Known:
        names, asked = Names.of(tenant, self._namespace), [(c, read_as) for c in dict.fromkeys(contents) for read_as in READ_AS]
        with self._answers() as redis, redis.pipeline(transaction=False) as pipe:
            for content, read_as in asked:
                pipe.exists(names.at(read_as, content))
            return {each for each, is_there in zip(asked, pipe.execute(), strict=True) if is_there}

    def _edit(self, tenant: str, decide: Callable[[Redis, Names], Change]) -> list[bytes]:
        """Read, decide and write, as if nobody else did; return what a source no longer consists of."""
        names = Names.of(tenant, self._namespace)
        with self._answers() as redis, redis.pipeline() as pipe:
            for _ in range(_MOST_TRIES):
                try:
                    pipe.watch(names.version)
                    change = decide(pipe, names)
                    pipe.multi()
                    _write(pipe, names, change)
                    pipe.execute()
                except self._watch_error:
                    continue
                return change.gone
        raise TierUnavailableError(f"other workers edited the catalog {_MOST_TRIES} times meanwhile; try again")

    def _adding(
        self, redis: Redis, names: Names, source: str, placed: Mapping[str, Sequence[Passage]], passages: Mapping[bytes, Passage]
    ) -> Change:
        """Return what an ingest changes; raises CapacityError where it does not fit."""
        before = Source.from_bytes(redis.get(names.source(source)), source)
        now = {read_as: [p.content for p in each] for read_as, each in placed.items()}
        others = [c for read_as, contents in before.placed.items() if read_as not in now for c in contents]
        first = [pack(p.token_ids) for p in next(iter(placed.values()))]
        all_placed = kept_beside(before, now, n_same_at_start(redis.hmget(names.tokens, others) if others else [], first))
        heads = _heads(redis, names, {*passages, *before.needed}, {c: p.parent for c, p in passages.items()})
        added = {c: Added(Head.of(p), pack(p.token_ids)) for c, p in passages.items() if c not in heads}
        parents = {content: head.parent for content, head in heads.items()} | {c: each.head.parent for c, each in added.items()}
        after = Source(all_placed, with_ancestors([c for each in all_placed.values() for c in each], parents))
        change = _change(redis, names, source, (before, after), heads, added)
        if change.used_bytes <= self._capacity_bytes:
            return change
        change = _without(redis, names, change, heads, _all_idle(redis, names, change).keys())
        if change.used_bytes > self._capacity_bytes:
            raise too_many(source, change.used_bytes, self._capacity_bytes)
        return change

    def _forgetting(self, redis: Redis, names: Names, source: str) -> Change:
        """Return what forgetting a source changes: what no source needs goes, unless its own source still stands for other texts."""
        before = Source.from_bytes(redis.get(names.source(source)), source)
        heads = _heads(redis, names, before.needed, {})
        change = _change(redis, names, source, (before, Source()), heads, {})
        idle = _all_idle(redis, names, change)
        origins = sorted(set(idle.values()) - {source})
        stands = dict(zip(origins, redis.zmscore(names.sources, origins) if origins else [], strict=True))
        return _without(redis, names, change, heads, [c for c, origin in idle.items() if stands.get(origin) is None])

    def _passages(self, redis: Redis, names: Names, contents: Sequence[bytes]) -> dict[bytes, Passage]:
        """Return passages by content; one that is not known is left out.

        Raises CorruptError for one without its tokens, or with others: whoever can write to this Redis could say what a passage says.
        """
        wanted = list(dict.fromkeys(contents))
        if not wanted:
            return {}
        heads, tokens = redis.hmget(names.heads, wanted), redis.hmget(names.tokens, wanted)
        if lost := [c for c, head, text in zip(wanted, heads, tokens, strict=True) if head is not None and text is None]:
            raise CorruptError(f"the shared catalog lost the tokens of passage {lost[0].hex()[:16]}; ingest its document again")
        found = {c: Head.from_bytes(head).passage(c, unpack(text)) for c, head, text in zip(wanted, heads, tokens, strict=True) if head}
        if wrong := [content for content, passage in found.items() if not passage.is_itself(self._namespace)]:
            raise CorruptError(
                f"the shared catalog has other tokens than those of passage {wrong[0].hex()[:16]}; ingest its document again"
            )
        return found

    @contextmanager
    def _answers(self) -> Iterator[Redis]:
        """Yield the client; raises ClosedError, and what Redis does not answer as one of our errors."""
        if self._is_closed:
            raise ClosedError("the catalog is closed")
        with redis_errors("the shared catalog"):
            yield self._redis

    def _check_policy(self) -> None:
        """Raise ConfigError for a Redis that may evict any key, or is a node of a Cluster."""
        with self._answers() as redis:
            memory, cluster = redis.info("memory"), redis.info("cluster")
        policy = str(memory.get("maxmemory_policy", ""))
        if policy.startswith("allkeys") and int(memory.get("maxmemory", 0)):
            raise ConfigError(f"worker.catalog_url: this Redis evicts ({policy}), and a catalog is no cache; use one with noeviction")
        if int(cluster.get("cluster_enabled", 0)):
            raise ConfigError("worker.catalog_url: this is a node of a Redis Cluster; the catalog needs one server of its own")


def _once_more() -> object:
    """Return how redis-py tries again: once, for a connection that was closed since it was used."""
    from redis.backoff import NoBackoff
    from redis.exceptions import ConnectionError as NoConnectionError
    from redis.retry import Retry

    return Retry(NoBackoff(), 1, supported_errors=(NoConnectionError,))


def _pages(redis: Redis, names: Names) -> Iterator[list[str]]:
    """Iterate over the names of all sources, in order, some at a time."""
    start = 0
    while page := [each.decode() for each in redis.zrange(names.sources, start, start + _PAGE - 1)]:
        yield page
        start += _PAGE


def _heads(redis: Redis, names: Names, contents: Collection[bytes], parents: Mapping[bytes, bytes | None]) -> dict[bytes, Head]:
    """Return the heads of contents, and of all that they were read behind, that are known; `parents` says more of what is new."""
    heads: dict[bytes, Head] = {}
    asked: set[bytes] = set()
    wanted = set(contents)
    while wanted:
        order = sorted(wanted)
        found = dict(zip(order, redis.hmget(names.heads, order), strict=True))
        heads |= {content: Head.from_bytes(data) for content, data in found.items() if data is not None}
        asked |= wanted
        wanted = {p for c in wanted for p in (heads[c].parent if c in heads else parents.get(c),) if p is not None} - asked
    return heads


def _change(
    redis: Redis, names: Names, source: str, turned: tuple[Source, Source], heads: Mapping[bytes, Head], added: Mapping[bytes, Added]
) -> Change:
    """Return the change of a source from one state to another, with nothing dropped yet."""
    before, after = turned
    touched = sorted(before.needed ^ after.needed | added.keys())
    counts = dict(zip(touched, redis.hmget(names.holders, touched) if touched else [], strict=True))
    holders = holders_after({content: int(n or 0) for content, n in counts.items()}, before, after)
    known = {**heads, **{content: each.head for content, each in added.items()}}
    idle = {content: known[content].source for content, n in holders.items() if not n and content in known}
    used_bytes = int(redis.get(names.used) or 0) + sum(len(each.tokens) for each in added.values())
    return Change(source, before, after, added, holders, idle, frozenset(), used_bytes)


def _all_idle(redis: Redis, names: Names, change: Change) -> dict[bytes, str]:
    """Return what no source needs after a change, and where each came from."""
    before = {content: origin.decode() for content, origin in redis.hgetall(names.idle).items()}
    return {**{content: origin for content, origin in before.items() if not change.holders.get(content)}, **change.idle}


def _without(redis: Redis, names: Names, change: Change, heads: Mapping[bytes, Head], dropped: Collection[bytes]) -> Change:
    """Return a change that drops passages too."""
    known = {**heads, **{content: each.head for content, each in change.added.items()}}
    known |= _heads(redis, names, [content for content in dropped if content not in known], {})
    freed_bytes = sum(known[content].nbytes for content in dropped if content in known)
    return replace(change, dropped=frozenset(dropped), used_bytes=max(0, change.used_bytes - freed_bytes))


def _write(pipe: Redis, names: Names, change: Change) -> None:
    """Queue all that a change writes."""
    pipe.incr(names.version)
    pipe.set(names.used, change.used_bytes)
    if stays := {content: each for content, each in change.added.items() if content not in change.dropped}:
        pipe.hset(names.heads, mapping={content: each.head.to_bytes() for content, each in stays.items()})
        pipe.hset(names.tokens, mapping={content: each.tokens for content, each in stays.items()})
        pipe.zadd(names.ids, {content.hex(): 0 for content in stays})
    if change.dropped:
        for name in (names.heads, names.tokens, names.idle):
            pipe.hdel(name, *change.dropped)
        pipe.zrem(names.ids, *(content.hex() for content in change.dropped))
    held = {content: n for content, n in change.holders.items() if n}
    _set(pipe, names.holders, held, [content for content in change.holders if content not in held])
    _set(pipe, names.idle, {c: origin for c, origin in change.idle.items() if c not in change.dropped}, list(held))
    _write_source(pipe, names, change)


def _write_source(pipe: Redis, names: Names, change: Change) -> None:
    """Queue what a source consists of, and where its contents stand."""
    key = names.source(change.source)
    if change.after.contents:
        pipe.set(key, change.after.to_bytes(change.source))
        pipe.zadd(names.sources, {change.source: 0})
    else:
        pipe.delete(key)
        pipe.zrem(names.sources, change.source)
    for read_as, index, content in change.left:
        pipe.zrem(names.at(read_as, content), place_to_bytes(change.source, index))
    for read_as, index, content in change.taken:
        pipe.zadd(names.at(read_as, content), {place_to_bytes(change.source, index): 0})


def _set(pipe: Redis, name: bytes, values: Mapping[bytes, int | str], removed: Sequence[bytes]) -> None:
    """Queue values of a hash, and fields to remove."""
    if values:
        pipe.hset(name, mapping=values)
    if removed:
        pipe.hdel(name, *removed)
