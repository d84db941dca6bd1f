"""The catalog that several workers share in one Redis."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from kvstore.core.errors import CapacityError, ConfigError, CorruptError, DeadlineError, KVError, NotFoundError, TierUnavailableError
from kvworker.ingest.catalog import Catalog
from kvworker.ingest.passages import Passage
from kvworker.ingest.redis_catalog import RedisCatalog
from kvworker.ingest.redis_records import Names
from kvworker.ingest.sqlite_catalog import SqliteCatalog
from tests.faults.soak import n_runs
from tests.redis_server import RedisServer
from tests.worker.catalogs import NAMESPACE, alone, document, store


@pytest.fixture
def two(redis_server: RedisServer) -> Iterator[tuple[RedisCatalog, RedisCatalog]]:
    """Open the shared catalog of two workers."""
    redis_server.command("FLUSHALL")
    both = RedisCatalog(NAMESPACE, redis_server.unix_url), RedisCatalog(NAMESPACE, redis_server.url)
    yield both
    for catalog in both:
        catalog.close()


def test_a_worker_answers_for_what_another_ingested(two: tuple[RedisCatalog, RedisCatalog]) -> None:
    """By id, by name and in listings, at once."""
    first, second = two
    passages = store(first, document("a.txt"))
    assert [second.find("alice", f"a.txt#{i}") for i in range(3)] == passages
    assert second.chain("alice", passages[2]) == passages
    assert second.listing("alice") == passages


def test_what_one_worker_forgot_no_other_knows(two: tuple[RedisCatalog, RedisCatalog]) -> None:
    """Not by name, not by id, and not as the beginning of something else."""
    first, second = two
    passages = store(first, document("a.txt"))
    second.find("alice", "a.txt#0")
    first.forget("alice", "a.txt")
    for name in ("a.txt#0", passages[0].content.hex(), passages[0].content.hex()[:8]):
        with pytest.raises(NotFoundError):
            second.find("alice", name)


def test_an_edit_by_another_worker_replaces_what_the_first_wrote(two: tuple[RedisCatalog, RedisCatalog]) -> None:
    """And tells what is gone, so that its chunks are deleted once."""
    first, second = two
    old, new = document("a.txt", 3), document("a.txt", 3, first_token=50)
    store(first, old)
    assert set(second.add("alice", "a.txt", {"document": new})) == {p.content for p in old}
    assert first.listing("alice") == new


def test_edits_by_many_workers_at_once_are_all_whole(redis_server: RedisServer) -> None:
    """Each document is one of the texts that were written, never a mixture; counts of holders and bytes are right in the end."""
    redis_server.command("FLUSHALL")
    ready = threading.Barrier(4)

    def work(n: int) -> None:
        catalog = RedisCatalog(NAMESPACE, redis_server.unix_url)
        ready.wait(10)
        for i in range(8):
            store(catalog, document("shared.txt", 1 + (n + i) % 4, first_token=100 * ((n + i) % 3)))
            store(catalog, document(f"{n}.txt", 2))
            if i % 3 == 2:
                catalog.forget("alice", "shared.txt")
        catalog.close()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    catalog = RedisCatalog(NAMESPACE, redis_server.unix_url)
    last = catalog.listing("alice", "shared.txt")
    assert last == document("shared.txt", len(last), first_token=last[0].token_ids[1])[: len(last)] if last else True
    for source in ("shared.txt", *(f"{n}.txt" for n in range(4))):
        catalog.forget("alice", source)
    catalog.close()
    assert left_in(redis_server) == {b"version": b"1", b"used": b"0"}


def left_in(redis_server: RedisServer) -> dict[bytes, bytes]:
    """Return the last parts of all keys of the server, with the values of counters; a version counts as 1."""
    with redis.Redis.from_url(redis_server.unix_url) as client:
        values: dict[bytes, Any] = {key: client.get(key) for key in client.keys("*")}
    return {key.rpartition(b":")[2]: b"1" if key.endswith(b":version") else value for key, value in values.items()}


def test_nothing_of_a_forgotten_document_is_left_in_redis(redis_server: RedisServer, two: tuple[RedisCatalog, RedisCatalog]) -> None:
    """Neither tokens nor names."""
    old, context = document("a.txt", 3), document("a.txt", 2, first_token=90)
    two[0].add("alice", "a.txt", {"document": old, "alone": alone(old)}, behind=context)
    store(two[0], document("a.txt", 3, first_token=50))
    two[1].forget("alice", "a.txt")
    assert left_in(redis_server) == {b"version": b"1", b"used": b"0"}


def test_tenants_have_no_key_in_common_and_are_not_named(redis_server: RedisServer, two: tuple[RedisCatalog, RedisCatalog]) -> None:
    """Whoever reads keys learns no tenant's name."""
    store(two[0], document("a.txt"))
    store(two[0], document("a.txt"), tenant="bob")
    prefixes = {Names.of(tenant, NAMESPACE).prefix for tenant in ("alice", "bob")}
    with redis.Redis.from_url(redis_server.unix_url) as client:
        found = {bytes(key).partition(b"}")[0] for key in client.keys("*")}
    assert found == {prefix.partition(b"}")[0] for prefix in prefixes}


def test_a_catalog_without_its_redis_says_so_and_works_again_when_it_is_back() -> None:
    """A worker's request fails with an error that may be tried again."""
    with RedisServer() as own:
        catalog = RedisCatalog(NAMESPACE, own.unix_url, timeout_s=0.2)
        store(catalog, document("a.txt"))
        own.pause()
        with pytest.raises(DeadlineError, match="the shared catalog"):
            catalog.find("alice", "a.txt#0")
        own.resume()
        assert catalog.find("alice", "a.txt#0").index == 0
        own.stop()
        with pytest.raises(TierUnavailableError, match="the shared catalog"):
            catalog.add("alice", "b.txt", {"document": document("b.txt")})
        own.start()
        store(catalog, document("b.txt"))
        assert len(catalog.listing("alice")) == 3
        catalog.close()


def test_a_redis_that_evicts_is_refused() -> None:
    """A catalog is no cache: a document would be half forgotten."""
    with RedisServer("--maxmemory", "8mb", "--maxmemory-policy", "allkeys-lru") as own, pytest.raises(ConfigError, match="noeviction"):
        RedisCatalog(NAMESPACE, own.unix_url)


def test_a_full_redis_is_a_lack_of_room() -> None:
    """Nothing of the document is kept."""
    with RedisServer("--maxmemory", "3mb", "--maxmemory-policy", "noeviction") as own:
        catalog = RedisCatalog(NAMESPACE, own.unix_url)
        with pytest.raises(CapacityError, match="maxmemory"):
            store(catalog, [replace(p, token_ids=p.token_ids * 100_000) for p in document("a.txt")])
        assert catalog.listing("alice") == []
        catalog.close()


@pytest.mark.parametrize("part", ["heads", "tokens", "source"])
def test_what_was_damaged_in_redis_is_refused(redis_server: RedisServer, two: tuple[RedisCatalog, RedisCatalog], part: str) -> None:
    """Other programs may write to it; tokens that are not those of the passage would be computed."""
    (passage,) = store(two[0], document("a.txt", 1))
    names = Names.of("alice", NAMESPACE)
    with redis.Redis.from_url(redis_server.unix_url) as client:
        if part == "source":
            client.set(names.source("a.txt"), b'["a.txt",{},7]')
        else:
            client.hset(getattr(names, part), passage.content, b"12345")
    with pytest.raises(CorruptError, match="again"):
        two[1].find("alice", "a.txt#0")


@pytest.mark.parametrize("name", ["the place", "the identity"])
def test_a_passage_with_the_tokens_of_another_is_refused(
    redis_server: RedisServer, two: tuple[RedisCatalog, RedisCatalog], name: str
) -> None:
    """Its identity is the digest of its tokens; chunks of it would be stored under a key that is not theirs."""
    passage, other = store(two[0], document("a.txt", 2))
    names = Names.of("alice", NAMESPACE)
    with redis.Redis.from_url(redis_server.unix_url) as client:
        client.hset(names.tokens, passage.content, client.hget(names.tokens, other.content))
    with pytest.raises(CorruptError, match="other tokens than those"):
        two[1].find("alice", "a.txt#0" if name == "the place" else passage.content.hex())


def test_a_url_that_is_none_is_refused_without_its_password() -> None:
    """Messages end in logs."""
    with pytest.raises(ConfigError) as caught:
        RedisCatalog(NAMESPACE, "redis://:s3cret@host/0?colour=red")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("seed", range(n_runs(full=100, short=3)))
def test_both_catalogs_do_the_same_whatever_is_asked_of_them(redis_server: RedisServer, tmp_path: Path, seed: int) -> None:
    """Edits, both ways of reading, shared beginnings, contexts, forgetting, a capacity that is reached: after each, all answers agree."""
    redis_server.command("FLUSHALL")
    chance = random.Random(seed)
    file = SqliteCatalog(NAMESPACE, tmp_path / "catalog.sqlite", capacity_bytes=96)
    shared = RedisCatalog(NAMESPACE, redis_server.unix_url, capacity_bytes=96)
    seen: set[bytes] = set()
    refused = 0
    for _ in range(40):
        source, tenant = chance.choice("abc") + ".txt", chance.choice(["alice", "bob"])
        if chance.random() < 0.2:
            results = [attempt(catalog, "forget", tenant, source) for catalog in (file, shared)]
        else:
            placed, behind = drawn(chance, source)
            seen.update(p.content for p in (*behind, *(p for each in placed.values() for p in each)))
            results = [attempt(catalog, "add", tenant, source, placed, behind) for catalog in (file, shared)]
        assert results[0] == results[1]
        names = [*(content.hex() for content in sorted(seen)), *(f"{s}.txt#{i}" for s in "abc" for i in range(5))]
        for who in ("alice", "bob"):
            asked = chance.sample(names, min(8, len(names)))
            both = [[attempt(each, "readings", who, [name], "auto") for name in asked] for each in (file, shared)]
            assert both[0] == both[1]
            assert attempt(file, "listing", who) == attempt(shared, "listing", who)
        refused += isinstance(results[0], tuple) and results[0][0] is CapacityError
    assert refused
    for catalog in (file, shared):
        catalog.close()


def drawn(chance: random.Random, source: str) -> tuple[dict[str, list[Passage]], list[Passage]]:
    """Draw what an ingest says: passages of one of a few texts, cut at some length, read in one way or both, behind others or not."""
    n_passages, first_token = chance.randint(1, 4), 10 * chance.randint(0, 3)
    behind = document(source, 2, first_token=90) if chance.random() < 0.3 else []
    passages = document(source, n_passages, first_token)
    if chance.random() < 0.4:
        passages[-1] = document(source, n_passages, first_token + 100)[-1]
    ways = chance.choice([("document",), ("alone",), ("document", "alone")])
    return {way: passages if way == "document" else alone(passages) for way in ways}, behind


def attempt(catalog: Catalog, method: str, *args: Any) -> Any:
    """Return what a call returns, or the error that it raises."""
    try:
        return getattr(catalog, method)(*args)
    except KVError as error:
        return type(error), str(error)
