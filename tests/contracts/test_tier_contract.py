"""What every tier promises, wrappers included."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvstore.core.errors import CapacityError, CorruptError
from kvstore.store.record import parse_head
from kvstore.store.tier import Tier
from tests.contracts.tiers import BOUNDED, CAPACITY_BYTES, TIERS, Place
from tests.redis_server import RedisServer
from tests.store.chunks import make_record, record_nbytes
from tests.store.reading import read_whole

PIECE_NBYTES = 1 << 20


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """One real Redis for the module."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def place(tmp_path: Path, redis: RedisServer) -> Place:
    """An empty directory and an empty Redis."""
    redis.command("FLUSHALL")
    return Place(tmp_path / "disk", redis)


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest, place: Place) -> Iterator[Tier]:
    """One tier of each kind, empty."""
    opened = TIERS[request.param](place)
    yield opened
    opened.close()


@pytest.fixture(params=BOUNDED)
def bounded(request: pytest.FixtureRequest, place: Place) -> Iterator[Tier]:
    """One tier of each kind that has a capacity of its own, empty."""
    opened = BOUNDED[request.param](place)
    yield opened
    opened.close()


@pytest.mark.parametrize("nbytes", [0, 1, PIECE_NBYTES - 1, PIECE_NBYTES, PIECE_NBYTES + 1, 3 * PIECE_NBYTES])
def test_a_record_comes_back_bit_for_bit(tier: Tier, nbytes: int) -> None:
    """Piece borders are where a byte is lost or doubled."""
    key, record = make_record(1, nbytes)
    tier.put(key, [record])
    assert read_whole(tier, key) == record


@pytest.mark.parametrize("total", [PIECE_NBYTES - 1, PIECE_NBYTES, PIECE_NBYTES + 1])
def test_a_record_that_ends_at_a_piece_border_comes_back(tier: Tier, total: int) -> None:
    """The head counts too: here the whole record ends at, just before and just behind a border."""
    key, record = make_record(2, total - record_nbytes(0))
    tier.put(key, [record])
    assert read_whole(tier, key) == record


def test_the_pieces_of_a_put_are_joined(tier: Tier) -> None:
    """The head is one piece; how the rest is cut says nothing."""
    key, record = make_record(3, PIECE_NBYTES + 5)
    tier.put(key, [record[:1000], memoryview(record)[1000:1007], bytearray(record[1007:PIECE_NBYTES]), b"", record[PIECE_NBYTES:]])
    assert read_whole(tier, key) == record


def test_a_key_that_was_never_put_is_not_there(tier: Tier) -> None:
    """A miss is a result, not an error."""
    key, _ = make_record(4)
    assert (read_whole(tier, key), tier.find([key]), tier.delete(key), tier.quarantine(key)) == (None, [None], False, False)


def test_the_first_record_of_a_key_stays(tier: Tier) -> None:
    """Puts are idempotent and the first writer wins."""
    key, record = make_record(5, 100)
    tier.put(key, [record])
    tier.put(key, [make_record(5, 200)[1]])
    assert read_whole(tier, key) == record


def test_a_deleted_record_is_gone_and_may_come_back(tier: Tier) -> None:
    """Delete says whether it was there."""
    key, record = make_record(6)
    tier.put(key, [record])
    assert (tier.delete(key), tier.delete(key), read_whole(tier, key)) == (True, False, None)
    tier.put(key, [record])
    assert read_whole(tier, key) == record


def test_a_quarantined_record_is_out_of_sight(tier: Tier) -> None:
    """A damaged copy must not be read twice."""
    key, record = make_record(7)
    tier.put(key, [record])
    assert (tier.quarantine(key), read_whole(tier, key), tier.find([key])) == (True, None, [None])


def test_find_tells_lengths_in_the_order_asked(tier: Tier) -> None:
    """One call covers many keys."""
    records = [make_record(seed, 10 * seed) for seed in range(20)]
    for key, record in records[::2]:
        tier.put(key, [record])
    assert tier.find([key for key, _ in records]) == [len(record) if n % 2 == 0 else None for n, (_, record) in enumerate(records)]
    assert tier.find([]) == []


def test_scan_lists_what_is_there(tier: Tier) -> None:
    """A restart rebuilds its index from this; a meta that is given is the record's."""
    records = dict(make_record(seed, seed) for seed in range(10))
    for key, record in records.items():
        tier.put(key, [record])
    listed = list(tier.scan())
    assert {item.key: item.nbytes for item in listed} == {key: len(record) for key, record in records.items()}
    assert all(item.meta in (None, parse_head(records[item.key]).meta) for item in listed)


def test_a_view_stays_as_it_was_whatever_happens_to_the_record(tier: Tier) -> None:
    """A reader may hold bytes long after the record was evicted and its place was taken."""
    key, record = make_record(8, 3000)
    tier.put(key, [record])
    landing = tier.get(key)
    assert landing is not None
    landing.fill(landing.nbytes)
    tier.delete(key)
    for seed in range(100, 120):
        tier.put(*(lambda pair: (pair[0], [pair[1]]))(make_record(seed, 3000)))
    assert bytes(landing.view) == record


def test_the_front_of_a_record_is_there_before_the_rest(tier: Tier) -> None:
    """A reader uses the first layer group while the last one travels; nobody receives what nobody needs."""
    key, record = make_record(9, 5 * PIECE_NBYTES)
    tier.put(key, [record])
    landing = tier.get(key)
    assert landing is not None
    landing.fill(3000)
    assert bytes(landing.view[:3000]) == record[:3000]
    landing.fill(2 * PIECE_NBYTES + 1)
    assert bytes(landing.view[: 2 * PIECE_NBYTES + 1]) == record[: 2 * PIECE_NBYTES + 1]


def test_what_was_received_stays_when_the_landing_is_closed(tier: Tier) -> None:
    """A reader that has enough stops, and uses what it has."""
    key, record = make_record(10, 3 * PIECE_NBYTES)
    tier.put(key, [record])
    landing = tier.get(key)
    assert landing is not None
    landing.fill(PIECE_NBYTES)
    landing.close()
    tier.delete(key)
    assert bytes(landing.view[:PIECE_NBYTES]) == record[:PIECE_NBYTES]


def test_two_readers_of_one_record_do_not_disturb_each_other(tier: Tier) -> None:
    """Each landing has its own progress and its own end."""
    key, record = make_record(11, 2 * PIECE_NBYTES)
    tier.put(key, [record])
    first, second = tier.get(key), tier.get(key)
    assert first is not None
    assert second is not None
    first.fill(1)
    first.close()
    second.fill(second.nbytes)
    assert bytes(second.view) == record


def test_used_bytes_stay_within_the_capacity(bounded: Tier) -> None:
    """A record that does not fit is refused and leaves nothing behind; the ones before stay."""
    records = [make_record(seed, 200_000) for seed in range(100)]
    stored = dict(records[: CAPACITY_BYTES // (200_000 + 1024)])
    for key, record in stored.items():
        bounded.put(key, [record])
    key, record = records[-1]
    with pytest.raises(CapacityError, match="raise its capacity"):
        bounded.put(key, [record])
    assert 200_000 * len(stored) <= bounded.used_bytes <= CAPACITY_BYTES
    assert {item.key for item in bounded.scan()} == set(stored)


def test_deleting_everything_frees_every_byte(bounded: Tier) -> None:
    """A leak of a few bytes per record fills a tier within a week."""
    for _ in range(3):
        records = [make_record(seed, 997 * seed) for seed in range(50)]
        for key, record in records:
            bounded.put(key, [record])
        for key, _ in random.Random(0).sample(records, len(records)):
            assert bounded.delete(key)
        assert bounded.used_bytes == 0


def read_or_miss(tier: Tier, key: bytes) -> bytes | None:
    """Return a record, or None where it is not there or was deleted while its bytes were on the way."""
    try:
        return read_whole(tier, key)
    except CorruptError:
        return None


def test_threads_that_put_get_and_delete_see_whole_records_only(tier: Tier) -> None:
    """Whatever the interleaving, a read is a miss or exactly what was put; a record lost on the way is a miss too."""
    records = [make_record(seed, 5000) for seed in range(8)]

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(60):
            key, record = rng.choice(records)
            act = rng.random()
            if act < 0.4:
                tier.put(key, [record])
            elif act < 0.6:
                tier.delete(key)
            else:
                assert read_or_miss(tier, key) in (None, record)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))


def test_closing_twice_is_fine(tier: Tier) -> None:
    """Whoever cleans up need not know who was first."""
    tier.close()
    tier.close()
