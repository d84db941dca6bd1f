"""What is counted of each tenant, and what an operator may know that tenants may not."""

from __future__ import annotations

from contextvars import copy_context
from dataclasses import replace

import pytest

from kvstore.core import calling
from kvstore.core.api import Hit, PutNote, Status
from kvstore.core.key import ChunkKey
from kvstore.server.observe.strays import Strays
from kvstore.server.observe.tally import KEPT_MISSES, Tally
from kvstore.server.service import StoreService
from tests.server.chunks import key, make_blob, make_service


@pytest.fixture
def service() -> StoreService:
    """Return a store in memory."""
    return make_service()


def _key(content: int, variant: int = 0) -> ChunkKey:
    return ChunkKey(bytes(32), bytes([content]) * 32, bytes([variant]) * 32)


def test_a_text_that_is_stored_in_any_codec_asked_for_is_one_hit() -> None:
    """A worker asks for each in all the codecs of its preset."""
    tally = Tally()
    tally.looked_up([Hit(_key(1, 1), Status.ABSENT, reason="variant"), Hit(_key(1, 2), Status.READY, "memory", 9)])
    assert tally.counters.snapshot() == {"lookup.hit": 1}
    assert not tally.misses


def test_a_text_that_is_in_no_codec_is_one_miss() -> None:
    """With the reason of the codec asked for first."""
    tally = Tally(clock=lambda: 5.0)
    tally.looked_up([Hit(_key(1, 1), Status.ABSENT, reason="evicted"), Hit(_key(1, 2), Status.ABSENT, reason="never_stored")])
    assert tally.counters.snapshot() == {"lookup.evicted": 1}
    assert [(note.at_s, note.key, note.reason) for note in tally.misses] == [(5.0, _key(1, 1), "evicted")]


def test_a_text_on_its_way_is_no_miss() -> None:
    """It may be ready soon."""
    tally = Tally()
    tally.looked_up([Hit(_key(1, 1), Status.ABSENT, reason="never_stored"), Hit(_key(1, 2), Status.PENDING)])
    assert tally.counters.snapshot() == {"lookup.pending": 1}


def test_a_miss_names_the_request_that_it_happened_in() -> None:
    """So that a request's id leads to it."""
    tally = Tally()

    def ask() -> None:
        calling.join_request("request-0001")
        tally.looked_up([Hit(_key(1), Status.ABSENT, reason="evicted")])

    copy_context().run(ask)
    assert tally.misses[0].request_id == "request-0001"


def test_only_the_latest_misses_are_kept() -> None:
    """A tenant that misses for ever fills no memory."""
    tally = Tally()
    for _ in range(2 * KEPT_MISSES):
        tally.looked_up([Hit(_key(1), Status.ABSENT, reason="evicted")])
    assert len(tally.misses) == len(tally.take_unsorted()) == KEPT_MISSES


def test_a_chunk_of_another_tenant_is_never_stored_to_the_tenant_and_a_stray_to_the_operator(service: StoreService) -> None:
    """The tenant must not learn what others have; the operator asks why the hit rate is low."""
    blob = make_blob(1)
    service.bind("alpha").put(blob, PutNote())
    beta = service.bind("beta")
    assert beta.lookup([key(blob)])[0].reason == "never_stored"
    assert "another tenant" not in " ".join(beta.explain(key(blob)).lines)
    strays = Strays(service)
    strays.sort()
    assert beta.tally.counters.snapshot() == {"lookup.never_stored": 1, "lookup.tenant": 1}
    assert strays.reason(beta, beta.tally.misses[0]) == "tenant"


def test_what_nobody_has_is_no_stray(service: StoreService) -> None:
    """And a miss is sorted once."""
    beta = service.bind("beta")
    beta.lookup([key(make_blob(1))])
    strays = Strays(service)
    strays.sort()
    service.bind("alpha").put(make_blob(1), PutNote())
    strays.sort()
    assert beta.tally.counters["lookup.tenant"] == 0


def test_explaining_counts_as_no_request(service: StoreService) -> None:
    """Whoever looks for a reason must not move the hit rate."""
    store = service.bind("alpha")
    store.explain(key(make_blob(1)))
    assert not store.tally.counters.snapshot()


def test_a_chunk_in_another_codec_has_a_reason_of_its_own(service: StoreService) -> None:
    """Whoever changed the worker's codec finds out why everything is computed."""
    blob, store = make_blob(1), service.bind("alpha")
    store.put(blob, PutNote())
    other = replace(key(blob), variant=bytes(32))
    assert store.lookup([other])[0].reason == "variant"
    assert store.lookup([replace(key(make_blob(2)), variant=bytes(32))])[0].reason == "never_stored"


def test_the_codec_of_another_tenants_chunk_is_no_reason(service: StoreService) -> None:
    """It would tell that somebody stored the text."""
    blob = make_blob(1)
    service.bind("alpha").put(blob, PutNote())
    assert service.bind("beta").lookup([replace(key(blob), variant=bytes(32))])[0].reason == "never_stored"


def test_a_codec_that_is_gone_is_no_reason(service: StoreService) -> None:
    """Only what could be read if it were asked for so."""
    blob, store = make_blob(1), service.bind("alpha")
    store.put(blob, PutNote())
    store.delete([key(blob)])
    assert store.lookup([replace(key(blob), variant=bytes(32))])[0].reason == "never_stored"
