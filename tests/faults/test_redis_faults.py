"""A store over a real Redis that is down, paused, evicting or flushed: each read is a miss within its deadline, or the right answer."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

import pytest

from kvstore.core.errors import CorruptError, EvictedError, KVError
from kvstore.core.reading import land_all
from kvstore.store.breaker import BreakerTier
from kvstore.store.memory import MemoryTier
from kvstore.store.record import land_head
from kvstore.store.redis.record import piece_names
from kvstore.store.redis.settings import RedisSettings
from kvstore.store.redis.tier import RedisTier
from kvstore.store.results import Miss, Opened, StoreSettings
from kvstore.store.tiered import TieredStore
from tests.redis_server import RedisServer
from tests.store.chunks import make_chunk, record_of
from tests.store.redis.fake import FakeRedis, Words, read_reply

DEADLINE_S = 0.3
SLACK_S = 0.7  # for a busy machine
N_CHUNKS = 8


def open_store(server: RedisServer) -> TieredStore:
    """Return a store whose memory is empty, over a Redis behind a breaker."""
    redis = BreakerTier(RedisTier(RedisSettings(server.url, timeout_s=DEADLINE_S)), cool_down_s=60.0)
    return TieredStore([MemoryTier(8 << 20), redis], StoreSettings(remote_timeout_s=DEADLINE_S))


def read(store: TieredStore, key: bytes) -> bytes | None:
    """Return a verified blob, or None when there is none, or a piece of it was evicted."""
    opened = store.get(key, timeout_s=10.0)
    if isinstance(opened, Miss):
        return None
    try:
        land_all(opened.landing)
    except CorruptError:
        return None
    return bytes(opened.landing.view)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis that holds a few chunks which no memory has."""
    with RedisServer() as running:
        writer = open_store(running)
        for seed in range(N_CHUNKS):
            key, meta, blob = make_chunk(seed, 1000)
            writer.put(key, meta, blob)
        assert writer.drain()
        writer.close()
        yield running


@pytest.mark.parametrize("fault", [RedisServer.stop, RedisServer.pause], ids=["down", "paused"])
def test_a_redis_that_does_not_answer_costs_one_deadline_and_then_nothing(
    server: RedisServer, fault: Callable[[RedisServer], None]
) -> None:
    """The first read waits its deadline at most; the breaker spares all that follow, and memory goes on working."""
    store = open_store(server)
    fault(server)
    start = time.monotonic()
    first = store.get(make_chunk(0)[0])
    waited_s = time.monotonic() - start
    time.sleep(DEADLINE_S)  # the call that the first read gave up on ends within its own deadline
    start = time.monotonic()
    others = [store.get(make_chunk(seed, 1000)[0]) for seed in range(1, N_CHUNKS)]
    spared_s = time.monotonic() - start
    key, meta, blob = make_chunk(99)
    assert store.put(key, meta, blob).stored
    assert isinstance(store.get(key), Opened)
    assert isinstance(first, Miss)
    assert first.reason in ("timeout", "unavailable")
    assert others == [Miss("breaker")] * (N_CHUNKS - 1)
    assert waited_s < DEADLINE_S + SLACK_S
    assert spared_s < DEADLINE_S
    server.resume() if fault is RedisServer.pause else None
    store.close(timeout_s=1.0)


def test_a_flushed_redis_is_a_miss_and_takes_new_chunks(server: RedisServer) -> None:
    """A lookup before the flush is no promise; the chunk can be stored again."""
    store = open_store(server)
    key, meta, blob = make_chunk(0, 1000)
    assert store.lookup([key])[0].tier == "redis"
    server.command("FLUSHALL")
    assert store.get(key) == Miss("never_stored")
    store.put(key, meta, blob)
    assert store.drain()
    assert open_store(server).lookup([key])[0].tier == "redis"
    store.close()


def test_an_evicting_redis_gives_the_right_answer_or_a_miss() -> None:
    """Far more is written than fits; what Redis dropped is computed again, and nothing is ever half there."""
    with RedisServer("--maxmemory", "12mb", "--maxmemory-policy", "allkeys-random") as small:
        chunks = [make_chunk(seed, 1_500_000) for seed in range(16)]
        writer = open_store(small)
        for chunk in chunks:
            writer.put(*chunk)
            writer.drain()
        writer.close()
        reader = open_store(small)
        outcomes = [read(reader, key) for key, _, _ in chunks]
        reader.close()
    assert outcomes.count(None) > 0
    assert all(outcome in (None, chunk[2]) for outcome, chunk in zip(outcomes, chunks, strict=True))


def open_far(store: TieredStore, key: bytes) -> Opened:
    """Open a record that only Redis has, and verify the first half of it."""
    opened = store.get(key, timeout_s=10.0)
    assert isinstance(opened, Opened)
    assert opened.tier == "redis"
    opened.landing.fill(opened.landing.nbytes // 2)
    return opened


@pytest.fixture
def long_read(server: RedisServer) -> Iterator[tuple[TieredStore, bytes, Opened]]:
    """A store, and a chunk of six pieces that it has begun to read from Redis."""
    key, meta, blob = make_chunk(50, 6 << 20)
    writer = open_store(server)
    writer.put(key, meta, blob)
    assert writer.drain()
    writer.close()
    store = open_store(server)
    yield store, key, open_far(store, key)
    store.close(timeout_s=1.0)


def piece(key: bytes, number: int) -> bytes:
    """Return the name of a piece in Redis."""
    return piece_names(key, 6 << 20)[number]


def test_a_piece_evicted_while_it_is_read_is_a_miss_and_no_damage(
    server: RedisServer, long_read: tuple[TieredStore, bytes, Opened]
) -> None:
    """Redis may always do that: nothing is quarantined, counted as damaged or as an error, and what is left goes too."""
    store, key, opened = long_read
    server.command("DEL", piece(key, 5))
    with pytest.raises(EvictedError) as caught:
        land_all(opened.landing)
    store.quarantine(key, "redis", caught.value)
    assert [server.command("EXISTS", piece(key, number)) for number in range(6)] == [b":0"] * 6
    assert store.get(key, timeout_s=10.0) == Miss("never_stored")
    counters = store.counters
    assert (counters["quarantined"], counters["tier.redis.errors"], counters["misses.corrupt"]) == (0, 0, 0)
    assert counters["tier.redis.misses"] == 2


def test_a_front_piece_that_was_evicted_is_a_miss_by_that_name(server: RedisServer) -> None:
    """The index is there still, so the read begins, and ends at once."""
    store, key = open_store(server), make_chunk(0, 1000)[0]
    server.command("DEL", piece_names(key, 1000)[0])
    assert store.get(key, timeout_s=10.0) == Miss("evicted")
    assert store.counters["quarantined"] == 0
    assert not store.scrub(key)
    store.close()


def test_a_piece_that_changed_while_it_is_read_is_damage(server: RedisServer, long_read: tuple[TieredStore, bytes, Opened]) -> None:
    """One flipped bit fails the part's digest; the copy is out of use and counted."""
    store, key, opened = long_read
    bit = server.command("GETBIT", piece(key, 5), "77")
    server.command("SETBIT", piece(key, 5), "77", "0" if bit == b":1" else "1")
    with pytest.raises(CorruptError, match="digest") as caught:
        land_all(opened.landing)
    store.quarantine(key, "redis", caught.value)
    assert store.counters["quarantined"] == 1
    assert isinstance(store.get(key, timeout_s=10.0), Miss)


def test_slow_readers_leave_the_tier_to_others(server: RedisServer) -> None:
    """More readers pause in the middle of a chunk than there are connections; lookups, reads and puts go on, and so do they in the end."""
    chunks = [make_chunk(60 + seed, 2 << 20) for seed in range(7)]
    writer, store = open_store(server), open_store(server)
    for chunk in chunks:
        writer.put(*chunk)
        assert writer.drain()
    slow = [open_far(store, key) for key, _, _ in chunks[:6]]
    assert store.lookup([chunks[6][0]])[0].tier == "redis"
    assert read(store, chunks[6][0]) == chunks[6][2]
    key, meta, blob = make_chunk(70, 2 << 20)
    store.put(key, meta, blob)
    assert store.drain()
    assert open_store(server).lookup([key])[0].tier == "redis"
    for opened, (_, _, blob) in zip(slow, chunks, strict=False):
        land_all(opened.landing)
        assert opened.landing.view == blob
    assert store.counters["tier.redis.errors"] == 0
    writer.close()
    store.close()


class Liar:
    """Serves one record, and damages one of its replies, in a way that a seed chooses."""

    def __init__(self, stored: dict[bytes, bytes]) -> None:
        self._stored = stored
        self.rng = random.Random(0)
        self.countdown = 0

    def __call__(self, words: Words) -> bytes | None:
        if words[0] == b"SET":
            self._stored[words[1]] = words[2]
            return b"+OK\r\n"
        reply = read_reply(self._stored, words)
        self.countdown -= 1
        return self.damage(reply) if self.countdown == 0 else reply

    def damage(self, reply: bytes) -> bytes | None:
        """Return the reply with a byte flipped, cut off, repeated or with garbage in it, or hang up; mostly near its front."""
        at = min(int(self.rng.expovariate(1 / 16)), len(reply) - 1)
        match self.rng.randrange(6):
            case 0 | 1:
                return reply[:at] + bytes([reply[at] ^ 1 << self.rng.randrange(8)]) + reply[at + 1 :]
            case 2:
                return reply + reply
            case 3:
                return reply[:at] + self.rng.randbytes(9) + reply[at:]
            case 4:
                return reply[:at]
        return None


def test_a_server_that_damages_a_reply_never_gives_wrong_bytes() -> None:
    """Whatever is flipped, cut, repeated or made up: the right bytes or a typed error, in time, and no connection stays behind."""
    key, meta, blob = make_chunk(7, 1_500_000)
    liar = Liar({})
    with FakeRedis(liar) as fake:
        writer = RedisTier(RedisSettings(fake.url, timeout_s=5.0))
        writer.put(key, [record_of(key, meta, blob)])
        writer.close()
        outcomes = set()
        for seed in range(150):
            liar.rng, liar.countdown = random.Random(seed), 1 + seed % 7
            tier = RedisTier(RedisSettings(fake.url, timeout_s=0.05))
            start = time.monotonic()
            outcomes.add(outcome(tier, key, blob))
            assert time.monotonic() - start < 2 * 0.05 + SLACK_S
            tier.close()
    assert fake.open_connections == 0
    assert {"right", "CorruptError", "TierUnavailableError", "DeadlineError"} <= outcomes


def outcome(tier: RedisTier, key: bytes, blob: bytes) -> str:
    """Read and verify a record; return "right", "miss", or which error it was."""
    try:
        landing = tier.get(key)
        if landing is None:
            return "miss"
        tail = landing.tail(land_head(landing, key).blob_offset)
        land_all(tail)
    except KVError as error:
        return type(error).__name__
    assert tail.view == blob
    return "right"
