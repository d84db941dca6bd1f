"""The Redis tier against a real server: down, slow, full, evicting or flushed is a miss or a clear error within the deadline."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from kvstore.core.errors import CapacityError, CorruptError, DeadlineError, TierUnavailableError
from kvstore.store.redis import PIECE_NBYTES, RedisTier, connect, regroup
from tests.redis_server import RedisServer
from tests.store.chunks import make_record

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
    return RedisTier(lambda: connect(server.url, timeout_s=timeout_s), ttl_s=ttl_s)


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
    assert tier.get(key) == record


@pytest.mark.parametrize("piece", ["0", "1", "3"])
def test_a_missing_piece_is_a_miss_that_cleans_up(server: RedisServer, tier: RedisTier, piece: str) -> None:
    """Redis evicts keys, not records; what is left of one is of no use."""
    key, record = make_record(2, 3 * PIECE_NBYTES)
    tier.put(key, [record])
    server.command("DEL", name(key, piece))
    assert tier.get(key) is None
    assert server.command("DBSIZE") == b":0"


@pytest.mark.parametrize(("piece", "value"), [("0", b"short"), ("3", b"x" * PIECE_NBYTES), ("i", b"x" * 40), ("i", b"x")])
def test_a_piece_or_index_of_another_length_or_content_is_corrupt(server: RedisServer, tier: RedisTier, piece: str, value: bytes) -> None:
    """The lengths are checked before memory is taken; the record's own digests find the rest."""
    key, record = make_record(3, 3 * PIECE_NBYTES)
    tier.put(key, [record])
    server.command("SET", name(key, piece), value)
    with pytest.raises(CorruptError):
        tier.get(key)
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
    open_tier(server, ttl_s=100).put(key, [record])
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
    assert tier.get(key) == record


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
        assert tier.get(key) == record


def test_a_full_server_refuses_a_record_and_keeps_no_pieces() -> None:
    """Without an eviction policy Redis says no; the message names the setting."""
    with RedisServer("--maxmemory", "8mb", "--maxmemory-policy", "noeviction") as small:
        tier = open_tier(small)
        key, record = make_record(8, 12 * PIECE_NBYTES)
        with pytest.raises(CapacityError, match="maxmemory"):
            tier.put(key, [record])
        assert small.command("DBSIZE") == b":0"


def test_a_server_that_evicts_gives_whole_records_or_misses() -> None:
    """Three times more is put than fits; the newest is there, and no read sees a part."""
    with RedisServer("--maxmemory", "12mb", "--maxmemory-policy", "allkeys-lru") as small:
        tier = open_tier(small)
        records = [make_record(seed, PIECE_NBYTES + 1000) for seed in range(24)]
        for key, record in records:
            tier.put(key, [record])
        found = [tier.get(key) for key, _ in records]
    assert found[-1] == records[-1][1]
    assert found.count(None) > 10
    assert all(data in (None, record) for data, (_, record) in zip(found, records, strict=True))


@pytest.mark.parametrize("cuts", [[], [5], [0, 10, 10, 11], [3, 9, 27]])
def test_regrouping_keeps_every_byte_in_order(cuts: list[int]) -> None:
    """However a record is cut, Redis gets pieces of one size."""
    data = bytes(range(31))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    assert [bytes(piece) for piece in regroup(pieces, 10)] == [data[:10], data[10:20], data[20:30], data[30:]]
