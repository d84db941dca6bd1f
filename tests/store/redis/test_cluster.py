"""A real cluster of three nodes: pieces are spread over all of them, slots move, and a node that dies takes only its own keys along."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvstore.core.errors import DeadlineError, EvictedError, TierUnavailableError
from kvstore.core.landing import PIECE_NBYTES
from kvstore.store.redis.record import index_name, piece_names
from kvstore.store.redis.route import slot_of
from kvstore.store.redis.settings import RedisSettings
from kvstore.store.redis.tier import RedisTier
from tests.redis_cluster import RedisCluster, node_id
from tests.redis_server import RedisServer
from tests.store.chunks import make_record

TIMEOUT_S = 1.0  # within which a living node answers a busy machine, too
SLACK_S = 4.0  # for a busy machine; a node that is asked each time costs fifteen deadlines in the first test


@pytest.fixture(scope="module")
def started() -> Iterator[RedisCluster]:
    """One cluster for the tests that leave it whole."""
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(started: RedisCluster) -> RedisCluster:
    """The cluster, empty."""
    for server in started.servers:
        server.command("FLUSHALL")
    return started


@pytest.fixture
def tier(cluster: RedisCluster) -> Iterator[RedisTier]:
    """A tier on the empty cluster."""
    opened = open_tier(cluster)
    yield opened
    opened.close()


def open_tier(cluster: RedisCluster, timeout_s: float = 5.0) -> RedisTier:
    """Return a tier that knows the first node."""
    return RedisTier(RedisSettings(cluster.url, timeout_s=timeout_s, cluster="on"))


def read(tier: RedisTier, key: bytes) -> bytes | None:
    """Return the whole record, or None."""
    landing = tier.get(key)
    if landing is None:
        return None
    landing.fill(landing.nbytes)
    return bytes(landing.view)


def record_where(wanted: Callable[[bytes, list[bytes]], bool], n_pieces: int = 2) -> tuple[bytes, bytes]:
    """Return a record whose key, and names of index and pieces, are as wanted."""
    for seed in range(10_000):
        key, record = make_record(seed, n_pieces * PIECE_NBYTES - 10_000)
        if wanted(key, [index_name(key), *piece_names(key, len(record))]):
            return key, record
    raise AssertionError("no such record")


def test_the_pieces_of_a_record_are_spread_over_all_nodes(cluster: RedisCluster, tier: RedisTier) -> None:
    """A record is as fast as all nodes together, and comes back in order."""
    key, record = make_record(1, 15 * PIECE_NBYTES)
    tier.put(key, [record[:1000], memoryview(record)[1000:]])
    assert sum(cluster.keys()) == 17
    assert min(cluster.keys()) > 0
    assert read(tier, key) == record


def test_find_scan_delete_and_used_bytes_cover_all_nodes(cluster: RedisCluster, tier: RedisTier) -> None:
    """Keys of one call lie anywhere."""
    records = [make_record(seed, 100 * seed) for seed in range(20)]
    for key, record in records[::2]:
        tier.put(key, [record])
    assert tier.find([key for key, _ in records]) == [len(record) if n % 2 == 0 else None for n, (_, record) in enumerate(records)]
    assert {item.key for item in tier.scan()} == {key for key, _ in records[::2]}
    assert tier.used_bytes > 0
    assert [tier.delete(key) for key, _ in records] == [n % 2 == 0 for n in range(20)]
    assert cluster.keys() == [0, 0, 0]


def test_a_missing_piece_is_an_error_that_cleans_up_on_all_nodes(cluster: RedisCluster, tier: RedisTier) -> None:
    """Each node evicts on its own."""
    key, record = make_record(2, 7 * PIECE_NBYTES)
    tier.put(key, [record])
    name = piece_names(key, len(record))[4]
    cluster.owner(name).command("DEL", name)
    with pytest.raises(EvictedError, match="piece 4 of 8 is missing"):
        read(tier, key)
    assert cluster.keys() == [0, 0, 0]
    assert tier.get(key) is None


def test_a_slot_that_moved_is_followed(cluster: RedisCluster, tier: RedisTier) -> None:
    """MOVED is followed in the middle of a record, and asked about no more."""
    key, record = record_where(lambda key, names: cluster.owner(names[2]) is cluster.servers[1])
    tier.put(key, [record])
    name = piece_names(key, len(record))[1]
    slot, target = str(slot_of(name)), cluster.servers[2]
    identity = node_id(target)
    cluster.servers[1].command("DEL", name)
    try:
        for server in (target, cluster.servers[1], cluster.servers[0]):
            assert server.command("CLUSTER", "SETSLOT", slot, "NODE", identity) == b"+OK"
        target.command("SET", name, record[PIECE_NBYTES:])
        assert read(tier, key) == record
        assert tier.delete(key)
        tier.put(key, [record])
        assert read(tier, key) == record
    finally:
        for server in cluster.servers:
            server.command("FLUSHALL")
        for server in (cluster.servers[1], target, cluster.servers[0]):
            server.command("CLUSTER", "SETSLOT", slot, "NODE", node_id(cluster.servers[1]))


def test_a_slot_on_its_way_is_asked_where_it_goes(cluster: RedisCluster, tier: RedisTier) -> None:
    """ASK is for one command only: while a slot moves, old keys are here and new ones there."""
    key, record = record_where(lambda key, names: cluster.owner(names[2]) is cluster.servers[1])
    name = piece_names(key, len(record))[1]
    slot, target = str(slot_of(name)), cluster.servers[2]
    try:
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", node_id(cluster.servers[1]))
        cluster.servers[1].command("CLUSTER", "SETSLOT", slot, "MIGRATING", node_id(target))
        tier.put(key, [record])
        assert read(tier, key) == record
        assert tier.delete(key)
    finally:
        for server in (target, cluster.servers[1]):
            server.command("CLUSTER", "SETSLOT", slot, "STABLE")


@pytest.mark.parametrize("fault", [RedisServer.stop, RedisServer.pause], ids=["killed", "paused"])
def test_a_dead_node_costs_its_deadline_once_and_only_its_own_keys(fault: Callable[[RedisServer], None]) -> None:
    """Records wholly on living nodes are served and written; the others are refused at once; find tells of what can be reached."""
    with RedisCluster() as cluster:
        dead = cluster.servers[2]
        alive, record_alive = record_where(lambda key, names: all(cluster.owner(name) is not dead for name in names))
        fresh, record_fresh = record_where(lambda key, names: key != alive and all(cluster.owner(name) is not dead for name in names))
        lost, record_lost = record_where(lambda key, names: cluster.owner(names[0]) is not dead and cluster.owner(names[2]) is dead)
        gone, record_gone = record_where(lambda key, names: cluster.owner(names[0]) is dead)
        tier = open_tier(cluster, TIMEOUT_S)
        for key, record in ((alive, record_alive), (lost, record_lost), (gone, record_gone)):
            tier.put(key, [record])
        landing = tier.get(lost)
        assert landing is not None
        landing.close()  # its connection to the node is gone too
        fault(dead)
        start = time.monotonic()
        with pytest.raises((TierUnavailableError, DeadlineError)):
            read(tier, lost)
        assert time.monotonic() - start < TIMEOUT_S + SLACK_S
        start = time.monotonic()
        for _ in range(5):
            assert read(tier, alive) == record_alive
            assert tier.find([alive, gone, fresh]) == [len(record_alive), None, None]
            for key in (lost, gone):
                with pytest.raises((TierUnavailableError, DeadlineError)):
                    read(tier, key)
        tier.put(fresh, [record_fresh])
        assert read(tier, fresh) == record_fresh
        assert {item.key for item in tier.scan()} == {alive, fresh, lost}
        with pytest.raises(TierUnavailableError):
            tier.put(gone, [record_gone])
        assert time.monotonic() - start < 2 * TIMEOUT_S + SLACK_S
        tier.close()
        dead.resume() if fault is RedisServer.pause else None


@pytest.mark.parametrize("fault", [RedisServer.stop, RedisServer.pause], ids=["killed", "paused"])
def test_a_node_that_dies_in_the_middle_of_a_read_ends_it_in_time(fault: Callable[[RedisServer], None]) -> None:
    """What has landed stays right, the rest is an error within the node's deadline, and every connection is free again."""
    with RedisCluster() as cluster:
        dead = cluster.servers[2]
        key, record = record_where(lambda key, names: cluster.owner(names[1]) is not dead and cluster.owner(names[-2]) is dead, n_pieces=12)
        tier = open_tier(cluster, TIMEOUT_S)
        tier.put(key, [record])
        landing = tier.get(key)
        assert landing is not None
        landing.fill(1000)
        fault(dead)
        start = time.monotonic()
        with pytest.raises((TierUnavailableError, DeadlineError)):
            landing.fill(landing.nbytes)
        assert time.monotonic() - start < 2 * TIMEOUT_S + SLACK_S
        assert landing.view[: landing.filled] == record[: landing.filled]
        living = record_where(lambda key, names: all(cluster.owner(name) is not dead for name in names))
        tier.put(living[0], [living[1]])
        assert [read(tier, living[0]) for _ in range(5)] == [living[1]] * 5
        tier.close()
        dead.resume() if fault is RedisServer.pause else None


def test_readers_that_pause_do_not_keep_others_from_any_node(cluster: RedisCluster, tier: RedisTier) -> None:
    """A record has a connection to each node; they are given up together, so that nobody who waits for one holds another."""
    records = [make_record(seed, 9 * PIECE_NBYTES) for seed in range(6)]
    for key, record in records:
        tier.put(key, [record])
    few = RedisTier(RedisSettings(cluster.url, timeout_s=5.0, cluster="on", connections=2))
    landings = [few.get(key) for key, _ in records]
    for landing in landings:
        assert landing is not None
        landing.fill(PIECE_NBYTES)
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda landing: landing.fill(landing.nbytes), filter(None, landings)))
    assert [landing and landing.view == record for landing, (_, record) in zip(landings, records, strict=True)] == [True] * 6
    few.close()


def test_a_cluster_that_is_down_is_unavailable() -> None:
    """The node that the URL names is all that is known at the start."""
    tier = RedisTier(RedisSettings("redis://127.0.0.1:1", timeout_s=TIMEOUT_S, cluster="on"))
    for _ in range(3):
        with pytest.raises(TierUnavailableError):
            tier.get(bytes(32))
    tier.close()


def test_a_server_that_is_no_cluster_says_so() -> None:
    """The setting and the server disagree."""
    with RedisServer() as single:
        tier = RedisTier(RedisSettings(single.url, timeout_s=5.0, cluster="on"))
        with pytest.raises(TierUnavailableError, match="cluster support disabled"):
            tier.get(bytes(32))
        tier.close()
