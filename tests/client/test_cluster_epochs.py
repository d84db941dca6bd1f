"""Several stores as one: nothing that was invalidated or deleted comes back with a store that was away."""

from __future__ import annotations

import pytest

from kvstore.core.api import Scope, Status
from kvstore.core.errors import TierUnavailableError
from tests.client.cluster_lab import BLOBS, KEYS, PACE, TENANT, ClusterLab, fill, owned, ready


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


def test_a_store_that_invents_epochs_costs_hits_and_nothing_else(lab: ClusterLab) -> None:
    """The others refuse what no store with the master secret made; who is right a client cannot tell, so it reads from one side only."""
    fill(lab.client())
    liar = lab.add("d:1").service
    liar._master_secret = bytes(32)
    liar.bind("alpha").invalidate(TENANT)
    hits = lab.client().lookup(KEYS)
    assert {hit.reason for hit in hits if hit.status is not Status.READY} <= {"unavailable", "never_stored"}
    assert {store.service.epochs.current("tenant", "alpha") for address, store in lab.stores.items() if address != "d:1"} == {0}


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
