"""Several stores as one: which stores a text stands for, by what name they are known, and what a name that changes does."""

from __future__ import annotations

import pytest

from kvclient.cluster.members import Members
from kvstore.core.api import PutNote
from kvstore.core.errors import ConfigError, TierUnavailableError
from tests.client.cluster_lab import BLOBS, KEYS, PACE, ClusterLab, fill, ready


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
