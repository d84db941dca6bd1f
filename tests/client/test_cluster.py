"""Several stores as one: where chunks lie, and what a store that is away costs."""

from __future__ import annotations

from collections import Counter

import pytest

from kvclient.cluster.members import Members
from kvstore.core.api import PutNote, Status
from kvstore.core.errors import AuthError, CapacityError, ConfigError, CorruptError, DeadlineError, KVError, TierUnavailableError
from tests.client.cluster_lab import BLOBS, KEYS, PACE, TENANT, ClusterLab, fill, owned, ready
from tests.server.chunks import key, make_blob
from tests.server.ways import parts_of, read, read_parts


def test_every_chunk_lies_on_one_store_and_every_store_has_some(lab: ClusterLab) -> None:
    """No bytes are kept twice unless that is asked for."""
    fill(lab.client())
    shares = Counter(tuple(lab.holders(k)) for k in KEYS)
    assert set(shares) == {("a:1",), ("b:1",), ("c:1",)}
    assert min(shares.values()) >= 8


def test_chunks_of_all_stores_come_in_the_order_of_their_keys(lab: ClusterLab) -> None:
    """Lookups and batches, repeated and absent keys included."""
    api = lab.client()
    fill(api, BLOBS[:20])
    wanted = [3, 19, 25, 3, 0]
    assert [hit.key for hit in api.lookup([KEYS[i] for i in wanted])] == [KEYS[i] for i in wanted]
    assert [read_parts(r) for r in api.get_batch([KEYS[i] for i in wanted])] == [parts_of(BLOBS[i]) if i < 20 else None for i in wanted]


def test_another_client_finds_what_one_put(lab: ClusterLab) -> None:
    """Nobody has to ask anybody where a chunk is."""
    fill(lab.client())
    other = lab.client(Members(tuple(lab.stores)[::-1]))
    lab.forget_calls()
    assert all(ready(other))
    assert all(store.calls.count("lookup") == 1 for store in lab.stores.values())


def test_what_no_store_has_is_asked_of_the_second_once_in_a_while(lab: ClusterLab) -> None:
    """Most forms in which a passage may be stored are stored nowhere, and every request asks for them."""
    client = lab.client()
    n_asked = []
    for pause_s in (0.0, 0.0, PACE.fresh_s):
        lab.clock.now_s += pause_s
        before = sum(state.calls.count("lookup") for state in lab.stores.values())
        assert {hit.reason for hit in client.lookup(KEYS)} == {"never_stored"}
        n_asked.append(sum(state.calls.count("lookup") for state in lab.stores.values()) - before)
    assert n_asked == [6, 3, 6]


def test_what_was_in_vain_a_moment_ago_is_found_where_the_first_store_is_away(lab: ClusterLab) -> None:
    """It took its place meanwhile."""
    client = lab.client()
    client.lookup(KEYS)
    lab.away("a:1")
    for blob in BLOBS:
        client.put(blob, PutNote())
    assert {hit.status for hit in client.lookup(KEYS)} == {Status.READY}


def test_a_store_that_is_away_is_a_miss_for_its_own_chunks_only(lab: ClusterLab) -> None:
    """The reason says that they may still be there."""
    api = lab.client()
    fill(api)
    lost = set(owned(lab, "b:1"))
    lab.away("b:1")
    hits = api.lookup(KEYS)
    assert {hit.key for hit in hits if hit.status is not Status.READY} == lost
    assert {hit.reason for hit in hits if hit.key in lost} == {"unavailable"}
    assert [read(api, blob) is None for blob in BLOBS] == [k in lost for k in KEYS]


def test_a_store_that_is_away_is_asked_once_per_pause(lab: ClusterLab) -> None:
    """No request waits for a store that did not answer one."""
    api = lab.client()
    api.lookup(KEYS)
    store = lab.away("b:1")
    api.lookup(KEYS)
    lab.forget_calls()
    for _ in range(10):
        api.lookup(KEYS)
        api.get_batch(KEYS)
    assert store.calls == []
    lab.clock.now_s += PACE.first_pause_s
    api.lookup(KEYS)
    assert store.calls == ["agree"]


def test_a_store_that_is_back_is_used_again(lab: ClusterLab) -> None:
    """With everything that it holds."""
    api = lab.client()
    fill(api)
    lab.away("b:1")
    api.lookup(KEYS)
    lab.back("b:1")
    assert all(ready(api))


def test_a_chunk_put_while_its_store_is_away_is_found_then_and_afterwards(lab: ClusterLab) -> None:
    """The next in rank takes it, and is asked for what the first in rank does not have."""
    api = lab.client()
    api.lookup(KEYS)
    lab.away("b:1")
    fill(api)
    assert all(ready(api))
    lab.back("b:1")
    assert all(ready(api))
    assert [read(api, blob) for blob in BLOBS] == [parts_of(blob) for blob in BLOBS]


def test_a_store_that_joins_takes_its_share_and_nothing_is_lost(lab: ClusterLab) -> None:
    """The store that had a chunk before is second in rank now."""
    fill(lab.client())
    lab.add("d:1")
    api = lab.client()
    assert all(ready(api))
    assert all(reader is not None for reader in api.get_batch(KEYS))
    more = [make_blob(seed) for seed in range(100, 148)]
    fill(api, more)
    assert 4 <= sum(lab.stores["d:1"].holds(key(blob)) for blob in more) <= 24


def test_with_two_replicas_no_single_store_is_missed(lab: ClusterLab) -> None:
    """Each chunk lies on two stores."""
    api = lab.client(replicas=2)
    fill(api)
    assert {len(lab.holders(k)) for k in KEYS} == {2}
    for address in lab.stores:
        lab.away(address)
        assert all(reader is not None for reader in api.get_batch(KEYS))
        lab.back(address)
        api.lookup(KEYS)


@pytest.mark.parametrize("replicas", [0, 3])
def test_other_numbers_of_replicas_are_refused(lab: ClusterLab, replicas: int) -> None:
    """A third copy would never be looked for."""
    with pytest.raises(ConfigError, match="1 or 2 stores"):
        lab.client(replicas=replicas)


def test_without_any_store_reading_is_a_miss_and_writing_an_error(lab: ClusterLab) -> None:
    """An answer is computed, and an ingest is told."""
    api = lab.client()
    for address in lab.stores:
        lab.away(address)
    assert {hit.reason for hit in api.lookup(KEYS)} == {"unavailable"}
    assert api.get_batch(KEYS[:2]) == [None, None]
    for write in (lambda: api.put(BLOBS[0], PutNote()), lambda: api.delete(KEYS), lambda: api.invalidate(TENANT), api.stats):
        with pytest.raises(TierUnavailableError, match="a:1"):
            write()


def test_a_refusal_is_no_outage(lab: ClusterLab) -> None:
    """Whoever has no right to a store must learn that, and not wait for the store to come back."""
    api = lab.client()
    for store in lab.stores.values():
        store.error = AuthError("the token is not known here")
    with pytest.raises(AuthError):
        api.lookup(KEYS)


def test_a_full_store_says_so(lab: ClusterLab) -> None:
    """The next in rank would be full soon, too; the setting to raise is the operator's."""
    api = lab.client()
    api.lookup(KEYS)
    for store in lab.stores.values():
        store.error = CapacityError("no room")
    with pytest.raises(CapacityError):
        api.put(BLOBS[0], PutNote())


def test_a_deadline_too_short_for_any_store_is_held_against_none_that_answers(lab: ClusterLab) -> None:
    """A request that has hardly any time left must not make others miss."""
    api = lab.client()
    fill(api)
    store = lab.stores["a:1"]
    for ask, error in (("lookup", DeadlineError("too late")), ("get_batch", DeadlineError("too late"))):
        store.errors[ask] = error
        getattr(api, ask)(KEYS, timeout_s=0.1)
        store.errors.clear()
        assert all(ready(api))


def test_a_store_that_keeps_no_deadline_is_found_out_in_the_background(lab: ClusterLab) -> None:
    """Short deadlines of lookups would otherwise be spent on it again and again."""
    api = lab.client()
    fill(api)
    lab.stores["a:1"].error = DeadlineError("too late")
    api.lookup(KEYS, timeout_s=0.1)
    lab.forget_calls()
    api.lookup(KEYS, timeout_s=0.1)
    assert lab.stores["a:1"].calls == []


def test_a_deadline_that_any_store_could_keep_is_held_against_the_one_that_did_not(lab: ClusterLab) -> None:
    """A store that hangs costs one timeout."""
    api = lab.client()
    fill(api)
    store = lab.stores["a:1"]
    store.error = DeadlineError("too late")
    api.get_batch(KEYS, timeout_s=5.0)
    store.error = None
    assert sum(ready(api)) < len(KEYS)


def test_readers_of_other_stores_are_closed_when_one_refuses(lab: ClusterLab) -> None:
    """They hold memory that nobody would give back."""
    api = lab.client()
    fill(api)
    lab.stores["a:1"].error = CorruptError("a header is damaged")
    with pytest.raises(CorruptError):
        api.get_batch(KEYS)
    lab.stores["a:1"].error = None
    assert all(reader is not None for reader in api.get_batch(KEYS))


def test_statistics_are_sums_and_say_when_a_store_is_away(lab: ClusterLab) -> None:
    """What an operator reads."""
    api = lab.client()
    fill(api)
    (tier,) = api.stats().tiers
    assert (tier.entries, tier.capacity_bytes, tier.is_available) == (len(KEYS), 3 * (64 << 20), True)
    lab.away("c:1")
    assert [t.is_available for t in api.stats().tiers] == [False]


def test_a_listing_names_each_chunk_once(lab: ClusterLab) -> None:
    """Replicas included, up to the limit."""
    api = lab.client(replicas=2)
    fill(api)
    assert {entry.key for entry in api.entries()} == set(KEYS)
    assert len(list(api.entries())) == len(KEYS)
    assert len(list(api.entries(limit=5))) == 5


def test_an_explanation_tells_what_every_store_says(lab: ClusterLab) -> None:
    """The one that should have the chunk first."""
    api = lab.client()
    fill(api)
    (home,) = lab.holders(KEYS[0])
    other = next(address for address in lab.stores if address != home)
    lab.away(other)
    explained = api.explain(KEYS[0])
    assert explained.hit.status is Status.READY
    assert explained.lines[0].startswith(f"store {home}: ready")
    assert any(line.startswith(f"store {other}: does not answer") for line in explained.lines)


def test_a_closed_client_says_so(lab: ClusterLab) -> None:
    """Every connection is closed, and nothing hangs."""
    api = lab.client()
    api.lookup(KEYS)
    api.close()
    assert [store.n_closed for store in lab.stores.values()] == [1, 1, 1]
    with pytest.raises(KVError, match="closed"):
        api.lookup(KEYS)
