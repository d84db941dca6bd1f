"""The Redis tier against a real server: down, slow, full, evicting or flushed is a miss or a clear error within the deadline."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvstore.core.errors import CapacityError, CorruptError, DeadlineError, EvictedError, TierUnavailableError
from kvstore.core.landing import PIECE_NBYTES
from kvstore.core.pool import BufferPool
from kvstore.store.redis.record import regroup
from kvstore.store.redis.settings import RedisSettings
from kvstore.store.redis.tier import RedisTier
from tests.redis_server import RedisServer
from tests.store.chunks import make_record
from tests.store.redis.fake import FakeRedis, Words, bulk, read_reply

TIMEOUT_S = 0.2
SLACK_S = 1.0  # for a busy machine


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """One real Redis for the module."""
    with RedisServer() as running:
        yield running


@pytest.fixture
def tier(server: RedisServer) -> Iterator[RedisTier]:
    """An empty tier."""
    server.command("FLUSHALL")
    opened = open_tier(server)
    yield opened
    opened.close()


def open_tier(server: RedisServer, timeout_s: float = 5.0, ttl_s: int = 0) -> RedisTier:
    """Return a tier on a server."""
    return RedisTier(RedisSettings(server.url, timeout_s=timeout_s, ttl_s=ttl_s))


def read(tier: RedisTier, key: bytes) -> bytes | None:
    """Return the whole record, or None."""
    landing = tier.get(key)
    if landing is None:
        return None
    landing.fill(landing.nbytes)
    return bytes(landing.view)


def read_or_miss(tier: RedisTier, key: bytes) -> bytes | None:
    """Return the whole record, or None also when some of it is missing."""
    try:
        return read(tier, key)
    except CorruptError:
        return None


def name(key: bytes, part: str) -> bytes:
    """Return the name of a key in Redis."""
    return f"larder:1:{key.hex()}:{part}".encode()


def test_the_index_is_written_behind_the_pieces(server: RedisServer, tier: RedisTier) -> None:
    """A writer that dies before the end leaves pieces that nobody sees."""
    key, record = make_record(1, 3 * PIECE_NBYTES)
    tier.put(key, [record])
    server.command("DEL", name(key, "i"))
    assert (tier.get(key), tier.find([key])) == (None, [None])
    tier.put(key, [record])
    assert read(tier, key) == record


@pytest.mark.parametrize("piece", ["0", "1", "3"])
def test_a_missing_piece_is_a_miss_that_cleans_up(server: RedisServer, tier: RedisTier, piece: str) -> None:
    """Redis evicts keys, not records; what is left of one is of no use."""
    key, record = make_record(2, 3 * PIECE_NBYTES)
    tier.put(key, [record])
    server.command("DEL", name(key, piece))
    with pytest.raises(EvictedError, match="missing"):
        read(tier, key)
    assert server.command("DBSIZE") == b":0"
    assert tier.get(key) is None


@pytest.mark.parametrize(("piece", "value"), [("0", b"short"), ("3", b"x" * PIECE_NBYTES), ("i", b"x" * 40), ("i", b"x")])
def test_a_piece_or_index_of_another_length_or_content_is_corrupt(server: RedisServer, tier: RedisTier, piece: str, value: bytes) -> None:
    """The lengths are checked before memory is taken; the record's own digests find the rest."""
    key, record = make_record(3, 3 * PIECE_NBYTES)
    tier.put(key, [record])
    server.command("SET", name(key, piece), value)
    with pytest.raises(CorruptError):
        read(tier, key)
    assert tier.quarantine(key)
    assert tier.get(key) is None


def test_a_flushed_server_is_a_miss(server: RedisServer, tier: RedisTier) -> None:
    """Nothing is remembered about what Redis should have."""
    key, record = make_record(4)
    tier.put(key, [record])
    server.command("FLUSHALL")
    assert tier.get(key) is None


def test_records_expire_when_a_ttl_is_set(server: RedisServer) -> None:
    """Every key of a record has it, so nothing stays behind."""
    key, record = make_record(5, 2 * PIECE_NBYTES)
    tier = open_tier(server, ttl_s=100)
    tier.put(key, [record])
    tier.close()
    assert {server.command("TTL", name(key, part)) for part in ("i", "0", "1", "2")} <= {b":100", b":99", b":98"}


def test_a_server_that_is_paused_costs_the_timeout(server: RedisServer) -> None:
    """Slow, not gone: its sockets still accept."""
    tier = open_tier(server, TIMEOUT_S)
    key, record = make_record(6)
    tier.put(key, [record])
    server.pause()
    start = time.monotonic()
    try:
        with pytest.raises(DeadlineError):
            tier.get(key)
        assert TIMEOUT_S <= time.monotonic() - start < TIMEOUT_S + SLACK_S
    finally:
        server.resume()
    assert read(tier, key) == record
    tier.close()


def test_a_server_that_is_down_is_unavailable_and_is_found_again(server: RedisServer) -> None:
    """The client reconnects; what a restarted Redis lost is a miss."""
    with RedisServer() as other:
        tier = open_tier(other, TIMEOUT_S)
        key, record = make_record(7)
        tier.put(key, [record])
        other.stop()
        start = time.monotonic()
        for call in (lambda: tier.get(key), lambda: tier.put(key, [record]), lambda: tier.find([key]), lambda: tier.used_bytes):
            with pytest.raises(TierUnavailableError):
                call()
        assert time.monotonic() - start < SLACK_S
        other.start()
        assert tier.get(key) is None
        tier.put(key, [record])
        assert read(tier, key) == record
        tier.close()


def test_a_full_server_refuses_a_record_and_keeps_no_pieces() -> None:
    """Without an eviction policy Redis says no; the message names the setting."""
    with RedisServer("--maxmemory", "8mb", "--maxmemory-policy", "noeviction") as small:
        tier = open_tier(small)
        key, record = make_record(8, 12 * PIECE_NBYTES)
        with pytest.raises(CapacityError, match="maxmemory"):
            tier.put(key, [record])
        assert small.command("DBSIZE") == b":0"
        tier.close()


def test_a_server_that_evicts_gives_whole_records_or_misses() -> None:
    """Three times more is put than fits; the newest is there, and no read sees a part."""
    with RedisServer("--maxmemory", "12mb", "--maxmemory-policy", "allkeys-lru") as small:
        tier = open_tier(small)
        records = [make_record(seed, PIECE_NBYTES + 1000) for seed in range(24)]
        for key, record in records:
            tier.put(key, [record])
        found = [read_or_miss(tier, key) for key, _ in records]
        tier.close()
    assert found[-1] == records[-1][1]
    assert found.count(None) > 10
    assert all(data in (None, record) for data, (_, record) in zip(found, records, strict=True))


@pytest.mark.parametrize("cuts", [[], [5], [0, 10, 10, 11], [3, 9, 27]])
def test_regrouping_keeps_every_byte_in_order(cuts: list[int]) -> None:
    """However a record is cut, Redis gets pieces of one size."""
    data = bytes(range(31))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    assert [b"".join(value) for value in regroup(pieces, 10)] == [data[:10], data[10:20], data[20:30], data[30:]]


def test_the_front_may_be_used_while_the_rest_stalls() -> None:
    """A layer group that is there is of use, whatever becomes of the next one."""
    key, record = make_record(20, 3 * PIECE_NBYTES)
    stored = stored_by_a_tier(key, record)

    def script(words: Words) -> bytes | None:
        if words[1].endswith(b":2"):
            fake.stopped.wait(10)
        return read_reply(stored, words)

    with FakeRedis(script) as fake:
        tier = RedisTier(RedisSettings(fake.url, timeout_s=TIMEOUT_S))
        landing = tier.get(key)
        assert landing is not None
        landing.fill(2 * PIECE_NBYTES)
        assert landing.view[: 2 * PIECE_NBYTES] == record[: 2 * PIECE_NBYTES]
        with pytest.raises(DeadlineError):
            landing.fill(landing.nbytes)
        tier.close()


def stored_by_a_tier(key: bytes, record: bytes) -> dict[bytes, bytes]:
    """Return what a tier stores of a record: names and values."""
    stored: dict[bytes, bytes] = {}

    def script(words: Words) -> bytes | None:
        if words[0] == b"SET":
            stored[words[1]] = words[2]
        return b"+OK\r\n" if words[0] == b"SET" else bulk(b"")

    with FakeRedis(script) as fake:
        tier = RedisTier(RedisSettings(fake.url, timeout_s=5.0))
        tier.put(key, [record[:100], memoryview(record)[100:]])
        tier.close()
    return stored


@pytest.mark.parametrize("reply", [b"$4\r\nabcd\r\n", b"$536870912\r\n", b"-ERR no\r\n", b"?", b":1\r\n", b"*-1\r\n", None])
@pytest.mark.parametrize("piece", [b":i", b":0", b":3"])
def test_a_server_that_lies_is_a_typed_error_and_loses_its_connection(piece: bytes, reply: bytes | None) -> None:
    """In the index, the first piece and the last one."""
    key, record = make_record(21, 3 * PIECE_NBYTES)
    stored = stored_by_a_tier(key, record)
    with FakeRedis(lambda words: reply if words[1].endswith(piece) else read_reply(stored, words)) as fake:
        tier = RedisTier(RedisSettings(fake.url, timeout_s=TIMEOUT_S))
        start = time.monotonic()
        with pytest.raises((TierUnavailableError, CorruptError, DeadlineError)):
            read(tier, key)
        assert time.monotonic() - start < TIMEOUT_S + SLACK_S
        tier.close()
    assert fake.open_connections == 0


def test_one_round_trip_reads_a_record_of_one_piece() -> None:
    """The first piece is asked for beside the index, before its length is known."""
    key, record = make_record(22, 1000)
    stored = stored_by_a_tier(key, record)
    asked: list[bytes] = []

    def script(words: Words) -> bytes | None:
        asked.append(words[1][-1:])
        return b"" if len(asked) == 1 else bulk(stored[name(key, "i")]) + bulk(stored[name(key, "0")])  # the first waits for the second

    with FakeRedis(script) as fake:
        tier = RedisTier(RedisSettings(fake.url, timeout_s=5.0))
        assert read(tier, key) == record
        tier.close()
    assert asked == [b"i", b"0"]


def test_a_piece_that_an_index_left_behind_does_not_hurt_the_next_call(server: RedisServer, tier: RedisTier) -> None:
    """Its bytes are on their way already when the miss is seen."""
    (key, record), (other, small) = make_record(23, 2 * PIECE_NBYTES), make_record(24)
    tier.put(key, [record])
    tier.put(other, [small])
    server.command("DEL", name(key, "i"))
    assert [tier.get(key) for _ in range(6)] == [None] * 6
    assert read(tier, other) == small


def test_readers_that_pause_do_not_keep_others_from_reading(server: RedisServer, tier: RedisTier) -> None:
    """A reader may take its time between two layer groups; its connections go to those who want them, and it gets its own later."""
    records = [make_record(seed, 6 * PIECE_NBYTES + seed) for seed in range(25, 31)]
    for key, record in records:
        tier.put(key, [record])
    few = RedisTier(RedisSettings(server.url, timeout_s=5.0, connections=2))
    landings = []
    for key, record in records:
        landing = few.get(key)
        assert landing is not None
        landing.fill(2 * PIECE_NBYTES)
        landings.append(landing)
        assert few.find([key]) == [len(record)]
    for landing, (_, record) in zip(landings, records, strict=True):
        landing.fill(landing.nbytes)
        assert landing.view == record
    few.close()


def test_readers_that_read_all_the_time_take_turns(server: RedisServer, tier: RedisTier) -> None:
    """One connection for four long records: each of them goes on as soon as another has got what it asked for."""
    records = [make_record(seed, 20 * PIECE_NBYTES + seed) for seed in range(4)]
    for key, record in records:
        tier.put(key, [record])
    one = RedisTier(RedisSettings(server.url, timeout_s=5.0, connections=1))
    order: list[int] = []

    def read_slowly(number: int) -> bool:
        landing = one.get(records[number][0])
        assert landing is not None
        for end in range(PIECE_NBYTES, landing.nbytes, PIECE_NBYTES):
            landing.fill(end)
            order.append(number)
        landing.fill(landing.nbytes)
        return landing.view == records[number][1]

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(read_slowly, range(4))) == [True] * 4
    first_done = next(at for at in range(len(order)) if order[: at + 1].count(order[at]) == 20)
    assert len(set(order[:first_done])) == 4, "somebody waited until another was done"
    one.close()


def test_a_reader_that_paused_and_lost_a_piece_meanwhile_is_told_so(server: RedisServer, tier: RedisTier) -> None:
    """What it asked for before it paused is asked for again."""
    key, record = make_record(26, 6 * PIECE_NBYTES)
    tier.put(key, [record])
    one = RedisTier(RedisSettings(server.url, timeout_s=5.0, connections=1))
    landing = one.get(key)
    assert landing is not None
    landing.fill(PIECE_NBYTES)
    assert one.find([key]) == [len(record)]
    server.command("DEL", name(key, "1"))
    with pytest.raises(EvictedError, match="piece 1 of 7 is missing"):
        landing.fill(landing.nbytes)
    assert server.command("DBSIZE") == b":0"
    one.close()


def test_a_landing_that_is_dropped_gives_its_connection_back(server: RedisServer, tier: RedisTier) -> None:
    """Nobody has to close what nobody refers to any more."""
    key, record = make_record(27, 12 * PIECE_NBYTES)
    tier.put(key, [record])
    one = RedisTier(RedisSettings(server.url, timeout_s=TIMEOUT_S, connections=1))
    for _ in range(3):
        assert one.get(key) is not None
        gc.collect()
    assert read(one, key) == record
    one.close()


def test_readers_at_once_get_their_own_records(tier: RedisTier) -> None:
    """More of them than connections."""
    records = [make_record(seed, PIECE_NBYTES + seed) for seed in range(30, 38)]
    for key, record in records:
        tier.put(key, [record])
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda pair: read(tier, pair[0]), records * 3))
    assert found == [record for _, record in records] * 3


def test_a_buffer_comes_from_the_pool_and_goes_back(server: RedisServer) -> None:
    """A fresh page costs more than the copy into it."""
    pool = BufferPool(16 << 20)
    tier = RedisTier(RedisSettings(server.url, timeout_s=5.0), pool=pool)
    key, record = make_record(40, 3 * PIECE_NBYTES)
    tier.put(key, [record])
    landing = tier.get(key)
    assert pool.lent_nbytes >= len(record)
    del landing
    assert pool.lent_nbytes == 0
    tier.close()
