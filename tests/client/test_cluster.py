"""Several stores as one: where chunks lie, what a store that is away costs, and that nothing invalidated comes back with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from kvclient.cluster.members import Members
from kvclient.cluster.store import ClusterStore
from kvstore.core.api import PutNote, Scope, Status
from kvstore.core.errors import AuthError, CapacityError, ConfigError, CorruptError, DeadlineError, KVError, TierUnavailableError
from kvstore.core.key import ChunkKey
from tests.client.cluster_lab import PACE, ClusterLab
from tests.server.chunks import key, make_blob
from tests.server.ways import parts_of, read, read_parts

BLOBS = [make_blob(seed) for seed in range(48)]
KEYS = [key(blob) for blob in BLOBS]
TENANT = Scope("tenant")


@pytest.fixture
def lab() -> Iterator[ClusterLab]:
    """Three empty stores."""
    with ClusterLab() as lab:
        yield lab


def fill(api: ClusterStore, blobs: Sequence[bytearray] = BLOBS, source: str = "") -> None:
    """Put chunks."""
    for blob in blobs:
        api.put(blob, PutNote(source=source))


def ready(api: ClusterStore, keys: Sequence[ChunkKey] = KEYS) -> list[bool]:
    """Return which chunks a lookup finds."""
    return [hit.status is Status.READY for hit in api.lookup(keys)]


def owned(lab: ClusterLab, address: str) -> list[ChunkKey]:
    """Return the keys whose chunk lies on a store and nowhere else."""
    return [k for k in KEYS if lab.holders(k) == [address]]


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


def test_an_invalidation_reaches_every_store(lab: ClusterLab) -> None:
    """Chunks of one document lie on all of them."""
    api = lab.client()
    fill(api, BLOBS[:24], source="a.txt")
    fill(api, BLOBS[24:], source="b.txt")
    assert api.invalidate(Scope("source", "a.txt")) == 1
    hits = api.lookup(KEYS)
    assert [hit.status is Status.READY for hit in hits] == [False] * 24 + [True] * 24
    assert {hit.reason for hit in hits[:24]} == {"epoch"}


def test_an_invalidation_that_misses_a_store_names_it_and_holds_on_the_others(lab: ClusterLab) -> None:
    """Its caller must not believe that it is done."""
    api = lab.client()
    fill(api)
    lab.away("b:1")
    with pytest.raises(TierUnavailableError, match="invalidated at a:1, c:1, and not yet at b:1"):
        api.invalidate(TENANT)
    assert not any(ready(api))


def test_a_store_that_missed_an_invalidation_is_brought_up_to_date_before_it_is_read(lab: ClusterLab) -> None:
    """Otherwise old chunks would come back with it."""
    api = lab.client()
    fill(api)
    lab.away("b:1")
    with pytest.raises(TierUnavailableError):
        api.invalidate(TENANT)
    lab.back("b:1")
    assert not any(ready(api))
    assert not any(lab.stores["b:1"].holds(k) for k in KEYS)
    assert api.invalidate(TENANT) >= 2


def test_a_client_that_saw_the_store_go_away_brings_it_up_to_date_for_whoever_invalidated(lab: ClusterLab) -> None:
    """The one that invalidated may have ended since."""
    first, second = lab.client(), lab.client()
    fill(first)
    lab.away("b:1")
    second.lookup(KEYS)
    with pytest.raises(TierUnavailableError):
        first.invalidate(TENANT)
    lab.back("b:1")
    assert not any(ready(second))


def test_a_client_that_noticed_nothing_compares_epochs_after_a_while(lab: ClusterLab) -> None:
    """The bound of what it may still read: `Pace.fresh_s`."""
    first, second = lab.client(), lab.client()
    fill(first)
    second.lookup(KEYS)
    store = lab.away("b:1")
    with pytest.raises(TierUnavailableError):
        first.invalidate(TENANT)
    store.error = None
    lab.clock.now_s += PACE.fresh_s
    assert not any(ready(second))


def test_a_store_that_joins_learns_what_was_invalidated_before(lab: ClusterLab) -> None:
    """With a shared tier behind them it would otherwise find chunks there that the others do not find any more."""
    api = lab.client()
    for _ in range(3):
        api.invalidate(TENANT)
    joined = lab.add("d:1")
    lab.client().lookup(KEYS)
    assert joined.service.epochs.current("tenant", "alpha") == 3


def test_stores_whose_epochs_differ_agree_on_the_larger_of_each(lab: ClusterLab) -> None:
    """Scope by scope, whoever has it."""
    lab.stores["a:1"].service.bind("alpha").invalidate(Scope("source", "x"))
    for _ in range(2):
        lab.stores["b:1"].service.bind("alpha").invalidate(TENANT)
    lab.client().lookup(KEYS)
    for store in lab.stores.values():
        epochs = store.service.epochs
        assert (epochs.current("tenant", "alpha"), epochs.current("source", "alpha", "x")) == (2, 1)


def test_epochs_of_one_tenant_are_nothing_to_another(lab: ClusterLab) -> None:
    """Comparing them must not cross tenants."""
    lab.stores["a:1"].service.bind("beta").invalidate(TENANT)
    lab.client().lookup(KEYS)
    assert lab.stores["b:1"].service.epochs.current("tenant", "alpha") == 0
    assert lab.stores["b:1"].service.epochs.current("tenant", "beta") == 0


def test_chunks_that_were_deleted_while_their_store_was_away_do_not_come_back(lab: ClusterLab) -> None:
    """It deletes them before it is read again."""
    api = lab.client()
    fill(api)
    lab.away("b:1")
    assert api.delete(KEYS) == len(KEYS) - len(lab_owned := owned(lab, "b:1"))
    lab.back("b:1")
    assert not any(ready(api))
    assert not any(lab.stores["b:1"].holds(k) for k in lab_owned)


def test_a_deletion_removes_replicas_too_and_counts_chunks_once(lab: ClusterLab) -> None:
    """The number is bounded by that of the keys."""
    api = lab.client(replicas=2)
    fill(api)
    assert api.delete(KEYS) == len(KEYS)
    assert {len(lab.holders(k)) for k in KEYS} == {0}


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


def test_stores_with_one_name_are_one_place(lab: ClusterLab) -> None:
    """A copied data directory must not make chunks lie in two places; the name stays when the address changes."""
    for address in ("a:1", "b:1"):
        lab.stores[address].service.name = "twin"
    api = lab.client()
    fill(api)
    assert all(ready(api))
    assert not any(lab.stores["b:1"].holds(k) for k in KEYS)


def test_a_store_that_moved_to_another_address_keeps_its_chunks(lab: ClusterLab) -> None:
    """Its name comes with its data."""
    for address, store in lab.stores.items():
        store.service.name = f"name-{address}"
    fill(lab.client())
    lab.stores["z:9"] = lab.stores.pop("b:1")
    lab.forget_calls()
    assert all(ready(lab.client()))
    assert all(store.calls.count("lookup") == 1 for store in lab.stores.values())


def test_a_name_stands_for_the_stores_it_resolves_to(lab: ClusterLab) -> None:
    """New ones are found when the name is resolved again, and those that left are not asked any more."""
    lab.resolved = ["a:1", "b:1"]
    api = lab.client(Members.parse("dns:stores:7420"))
    fill(api)
    assert not any(lab.stores["c:1"].holds(k) for k in KEYS)
    lab.resolved = ["a:1", "c:1"]
    lab.clock.now_s += PACE.resolve_s
    api.lookup(KEYS)
    lab.forget_calls()
    api.lookup(KEYS)
    assert [bool(lab.stores[address].calls) for address in ("a:1", "b:1", "c:1")] == [True, False, True]


def test_a_name_that_does_not_resolve_for_a_while_changes_nothing(lab: ClusterLab) -> None:
    """DNS is no part of what a request needs."""
    lab.resolved = ["a:1", "b:1"]
    api = lab.client(Members.parse("dns:stores:7420"))
    fill(api)
    lab.resolved = TierUnavailableError("no such name")
    lab.clock.now_s += PACE.resolve_s
    assert all(ready(api))


def test_a_name_that_never_resolved_is_an_outage_that_says_so(lab: ClusterLab) -> None:
    """And it is tried again."""
    lab.resolved = TierUnavailableError("no such name")
    api = lab.client(Members.parse("dns:stores:7420"))
    with pytest.raises(TierUnavailableError, match="no such name"):
        api.put(BLOBS[0], PutNote())
    lab.resolved = ["a:1"]
    lab.clock.now_s += PACE.resolve_s
    api.put(BLOBS[0], PutNote())
    assert ready(api, KEYS[:1]) == [True]


@pytest.mark.parametrize(
    "text",
    ["", "host", "host:", ":7420", "host:0", "host:65536", "a:1,", "a:1,a:1", "dns:name", "dns::1", "a:1,dns:b:2", "a b:1", "http://a:1"],
)
def test_what_names_no_store_is_refused(text: str) -> None:
    """With the ways in which it can be written."""
    with pytest.raises(ConfigError):
        Members.parse(text)


def test_one_address_a_list_and_a_name_are_told_apart() -> None:
    """One address needs none of this."""
    assert Members.parse("[::1]:7420").is_one
    assert Members.parse("a:1, b:2").listed == ("a:1", "b:2")
    assert (Members.parse("dns:stores:7420").name, Members.parse("dns:stores:7420").port) == ("stores", 7420)


def test_a_closed_client_says_so(lab: ClusterLab) -> None:
    """Every connection is closed, and nothing hangs."""
    api = lab.client()
    api.lookup(KEYS)
    api.close()
    assert [store.n_closed for store in lab.stores.values()] == [1, 1, 1]
    with pytest.raises(KVError, match="closed"):
        api.lookup(KEYS)
