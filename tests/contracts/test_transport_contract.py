"""What every way to reach a store must do: embedded, and over each transport."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvstore.core.api import PutNote, Scope, Status, StoreAPI
from kvstore.core.blob import HEADER_NBYTES
from kvstore.core.errors import CapacityError, CorruptError, FormatError, InvalidInputError
from kvstore.server.service import StoreService
from tests.server.chunks import NAMESPACE, key, make_blob, make_service
from tests.server.serving import dialing, serving
from tests.server.ways import WAYS, parts_of, reaching, read

CAPACITY_BYTES = 16 << 20
MAX_BLOB_BYTES = 6 << 20


@pytest.fixture
def service() -> Iterator[StoreService]:
    """The store behind every transport of a test."""
    made = make_service(CAPACITY_BYTES, MAX_BLOB_BYTES)
    yield made
    made.close()


@pytest.fixture(params=WAYS)
def tenants(request: pytest.FixtureRequest, service: StoreService) -> Iterator[dict[str, StoreAPI]]:
    """Two tenants' views of the store over one transport."""
    with reaching(service, request.param) as views:
        yield views


@pytest.fixture
def api(tenants: dict[str, StoreAPI]) -> StoreAPI:
    """One tenant's view."""
    return tenants["alpha"]


@pytest.mark.parametrize("part_nbytes", [0, 1, 1000, (1 << 20) - 1, 1 << 20, 1_500_000])
def test_what_was_put_is_what_is_got(api: StoreAPI, part_nbytes: int) -> None:
    """Sizes around the 1 MiB piece of the wire included."""
    blob = make_blob(part_nbytes=part_nbytes)
    api.put(blob, PutNote())
    assert read(api, blob) == parts_of(blob)


def test_a_receipt_tells_where_the_chunk_is(api: StoreAPI) -> None:
    """A writer learns tier and size without another call."""
    blob = make_blob()
    receipt = api.put(blob, PutNote())
    assert (receipt.key, receipt.stored, receipt.tier, receipt.nbytes, receipt.is_durable) == (key(blob), True, "memory", len(blob), False)


def test_a_reader_knows_size_tier_and_manifest_before_any_part(api: StoreAPI) -> None:
    """A plan is made from them."""
    blob = make_blob()
    api.put(blob, PutNote())
    reader = api.get(key(blob))
    assert reader is not None
    assert (reader.nbytes, reader.tier, reader.manifest.n_tokens) == (len(blob), "memory", 7)
    reader.close()


def test_parts_can_be_read_in_any_order_and_again(api: StoreAPI) -> None:
    """Layer groups are decoded when a model needs them."""
    blob = make_blob(part_nbytes=700_000)
    api.put(blob, PutNote())
    reader = api.get(key(blob))
    assert reader is not None
    assert [bytes(reader.part(index)) for index in (2, 0, 2, 1)] == [parts_of(blob)[index] for index in (2, 0, 2, 1)]
    reader.close()


def test_a_part_outlives_its_closed_reader(api: StoreAPI) -> None:
    """Whoever decodes a part need not keep the reader."""
    blob = make_blob()
    api.put(blob, PutNote())
    reader = api.get(key(blob))
    assert reader is not None
    part = reader.part(1)
    reader.close()
    assert bytes(part) == parts_of(blob)[1]


def test_a_chunk_that_nobody_stored_is_a_miss(api: StoreAPI) -> None:
    """A miss is a result, not an error."""
    assert api.get(key(make_blob())) is None


def test_a_lookup_answers_every_key_in_order(api: StoreAPI) -> None:
    """Repeated and absent keys included."""
    blobs = [make_blob(seed) for seed in range(3)]
    api.put(blobs[1], PutNote())
    hits = api.lookup([key(blobs[i]) for i in (0, 1, 2, 1)])
    assert [(h.key, h.status) for h in hits] == [
        (key(blobs[0]), Status.ABSENT),
        (key(blobs[1]), Status.READY),
        (key(blobs[2]), Status.ABSENT),
        (key(blobs[1]), Status.READY),
    ]


def test_a_ready_hit_tells_tier_and_size_and_an_absent_one_the_reason(api: StoreAPI) -> None:
    """What the cost model and a person need."""
    blob, absent = make_blob(1), make_blob(2)
    api.put(blob, PutNote())
    ready, missing = api.lookup([key(blob), key(absent)])
    assert (ready.tier, ready.nbytes, ready.reason) == ("memory", len(blob), "")
    assert (missing.tier, missing.nbytes, missing.reason) == ("", 0, "never_stored")


def test_a_lookup_of_nothing_answers_nothing(api: StoreAPI) -> None:
    """An empty plan is a plan."""
    assert api.lookup([]) == []


def test_a_lookup_of_twenty_thousand_keys_answers_them_all(api: StoreAPI) -> None:
    """More than one message holds."""
    keys = [key(make_blob(seed)) for seed in range(2)] * 10_000
    assert len(api.lookup(keys)) == 20_000


@pytest.mark.parametrize("lease_s", [-1.0, float("nan"), float("inf")])
def test_a_lease_that_cannot_be_is_refused(api: StoreAPI, lease_s: float) -> None:
    """A lease is a number of seconds."""
    with pytest.raises(InvalidInputError, match="lease_s"):
        api.lookup([key(make_blob())], lease_s)


def test_a_leased_chunk_survives_a_flood_that_evicts_others(api: StoreAPI) -> None:
    """What a plan is about to read must still be there when it reads."""
    leased, other = make_blob(0, part_nbytes=600_000), make_blob(1, part_nbytes=600_000)
    api.put(leased, PutNote())
    api.put(other, PutNote())
    api.lookup([key(leased)], lease_s=60.0)
    for seed in range(2, 20):
        api.put(make_blob(seed, part_nbytes=600_000), PutNote(recompute_s=100.0))
    assert [hit.status for hit in api.lookup([key(leased), key(other)])] == [Status.READY, Status.ABSENT]


def test_the_first_writer_wins(api: StoreAPI) -> None:
    """A stored chunk is never written over; the second writer is told."""
    blob = make_blob()
    assert api.put(blob, PutNote(source="first")).stored
    assert not api.put(blob, PutNote(source="second")).stored
    assert [entry.source for entry in api.entries()] == ["first"]


def test_many_writers_of_one_key_store_it_once(api: StoreAPI) -> None:
    """Workers prefill the same passage at the same time."""
    blob = make_blob(part_nbytes=300_000)
    with ThreadPoolExecutor(8) as pool:
        receipts = list(pool.map(lambda _: api.put(blob, PutNote()), range(8)))
    assert sum(receipt.stored for receipt in receipts) == 1
    assert read(api, blob) == parts_of(blob)


def test_another_tenant_never_hits(tenants: dict[str, StoreAPI]) -> None:
    """The same key of another tenant is another place."""
    blob = make_blob()
    tenants["alpha"].put(blob, PutNote())
    assert tenants["beta"].get(key(blob)) is None
    assert tenants["beta"].lookup([key(blob)])[0].status is Status.ABSENT
    assert tenants["beta"].delete([key(blob)]) == 0
    assert list(tenants["beta"].entries()) == []
    assert read(tenants["alpha"], blob) is not None


def test_an_invalidation_of_one_tenant_leaves_the_other_alone(tenants: dict[str, StoreAPI]) -> None:
    """Epochs belong to tenants."""
    blob = make_blob()
    for api in tenants.values():
        api.put(blob, PutNote(source="book"))
    for scope in (Scope("tenant"), Scope("model", NAMESPACE.hex()), Scope("source", "book")):
        tenants["alpha"].invalidate(scope)
    assert read(tenants["alpha"], blob) is None
    assert read(tenants["beta"], blob) is not None


def test_a_deleted_chunk_is_gone_and_can_be_put_again(api: StoreAPI) -> None:
    """Deleting is no lasting verdict."""
    blobs = [make_blob(seed) for seed in range(2)]
    for blob in blobs:
        api.put(blob, PutNote())
    assert api.delete([key(blobs[0]), key(make_blob(9))]) == 1
    assert api.lookup([key(blobs[0])])[0].reason == "deleted"
    assert [read(api, blob) is None for blob in blobs] == [True, False]
    assert api.put(blobs[0], PutNote()).stored


@pytest.mark.parametrize("scope", [Scope("tenant"), Scope("model", NAMESPACE.hex()), Scope("source", "book")], ids=lambda s: s.kind)
def test_an_invalidated_chunk_is_a_miss_for_the_reason_epoch(api: StoreAPI, scope: Scope) -> None:
    """At once, for lookup and get, and however often one asks."""
    blob = make_blob()
    api.put(blob, PutNote(source="book"))
    assert api.invalidate(scope) == 1
    assert read(api, blob) is None
    assert [api.lookup([key(blob)])[0].reason for _ in range(2)] == ["epoch", "epoch"]


@pytest.mark.parametrize("scope", [Scope("tenant"), Scope("model", NAMESPACE.hex()), Scope("source", "book")], ids=lambda s: s.kind)
def test_a_chunk_can_be_put_again_after_an_invalidation(api: StoreAPI, scope: Scope) -> None:
    """The stale copy is not the first writer."""
    blob = make_blob()
    api.put(blob, PutNote(source="book"))
    api.invalidate(scope)
    assert api.put(blob, PutNote(source="book")).stored
    assert read(api, blob) == parts_of(blob)


def test_invalidating_one_source_leaves_other_sources_alone(api: StoreAPI) -> None:
    """A changed document takes back its own chunks."""
    kept, lost = make_blob(0), make_blob(1)
    api.put(kept, PutNote(source="kept"))
    api.put(lost, PutNote(source="lost"))
    api.invalidate(Scope("source", "lost"))
    assert [hit.status for hit in api.lookup([key(kept), key(lost)])] == [Status.READY, Status.ABSENT]


def test_invalidating_one_model_leaves_other_models_alone(api: StoreAPI) -> None:
    """A model is its namespace."""
    other = make_blob(namespace=bytes(32))
    api.put(other, PutNote())
    api.invalidate(Scope("model", NAMESPACE.hex()))
    assert read(api, other) is not None


def test_an_invalidated_chunk_is_not_listed(api: StoreAPI) -> None:
    """A listing shows what can be had."""
    api.put(make_blob(), PutNote(source="book"))
    api.invalidate(Scope("source", "book"))
    assert list(api.entries()) == []


@pytest.mark.parametrize("scope", [Scope("planet", "earth"), Scope("model", "abc"), Scope("source", ""), Scope("source", "x" * 5000)])
def test_a_scope_that_names_nothing_is_refused(api: StoreAPI, scope: Scope) -> None:
    """A typing error must not look like a success."""
    with pytest.raises(InvalidInputError):
        api.invalidate(scope)


def test_a_listing_tells_what_a_person_wants_to_know(api: StoreAPI) -> None:
    """Without reading any chunk."""
    blob = make_blob()
    api.put(blob, PutNote(source="docs/a.txt"))
    (entry,) = api.entries()
    assert entry.key == key(blob)
    assert (entry.kind, entry.n_tokens, entry.nbytes, entry.codec) == ("alone", 7, len(blob), "raw")
    assert (entry.tiers, entry.source) == (("memory",), "docs/a.txt")


@pytest.mark.parametrize("limit", [0, 1, 3, 100])
def test_a_listing_keeps_to_its_limit(api: StoreAPI, limit: int) -> None:
    """A large store is listed in part."""
    for seed in range(5):
        api.put(make_blob(seed), PutNote())
    assert len(list(api.entries(limit))) == min(limit, 5)


def test_stats_count_hits_and_misses_and_tell_the_use_of_tiers(api: StoreAPI) -> None:
    """Operators look here first."""
    blob = make_blob()
    api.put(blob, PutNote())
    read(api, blob)
    api.get(key(make_blob(1)))
    stats = api.stats()
    assert (stats.counters["hits"], stats.counters["misses"]) == (1, 1)
    (tier,) = stats.tiers
    assert (tier.name, tier.capacity_bytes, tier.entries, tier.is_available, tier.is_durable) == ("memory", CAPACITY_BYTES, 1, True, False)
    assert len(blob) <= tier.used_bytes <= CAPACITY_BYTES


def test_an_explanation_says_where_a_ready_chunk_is(api: StoreAPI) -> None:
    """And which epochs its key was made with."""
    blob = make_blob()
    api.put(blob, PutNote())
    told = api.explain(key(blob))
    assert (told.hit.status, told.tenant_epoch, told.model_epoch) == (Status.READY, 0, 0)
    assert "memory" in told.lines[0]


def test_an_explanation_says_why_a_chunk_is_missing(api: StoreAPI) -> None:
    """In a sentence."""
    blob = make_blob()
    api.put(blob, PutNote())
    api.invalidate(Scope("tenant"))
    told = api.explain(key(blob))
    assert (told.hit.reason, told.tenant_epoch, told.model_epoch) == ("epoch", 1, 0)
    assert "invalidated" in told.lines[0]


def test_a_chunk_over_the_limit_is_refused_and_not_stored(api: StoreAPI) -> None:
    """The message says which setting to raise."""
    blob = make_blob(part_nbytes=MAX_BLOB_BYTES // 3 + 1)
    with pytest.raises(InvalidInputError, match="max_blob_bytes"):
        api.put(blob, PutNote())
    assert api.get(key(blob)) is None


def test_a_chunk_that_every_tier_is_too_small_for_is_refused() -> None:
    """With the sizes."""
    service = make_service(capacity_bytes=64 << 10)
    blob = make_blob(part_nbytes=100_000)
    with serving(service) as server, dialing(server) as remote:
        for api in (service.bind("alpha"), remote):
            with pytest.raises(CapacityError, match="raise its capacity"):
                api.put(blob, PutNote())


def test_a_flipped_bit_anywhere_is_refused_and_nothing_is_stored(api: StoreAPI) -> None:
    """Header, manifest, digests, padding and parts are all covered."""
    blob = make_blob(part_nbytes=100)
    for at in range(0, len(blob), 7):
        bad = bytearray(blob)
        bad[at] ^= 1 << (at % 8)
        with pytest.raises((FormatError, CorruptError)):
            api.put(bad, PutNote())
    assert list(api.entries()) == []


@pytest.mark.parametrize("nbytes", [0, 1, HEADER_NBYTES - 1, HEADER_NBYTES, 300])
def test_a_truncated_chunk_is_refused(api: StoreAPI, nbytes: int) -> None:
    """However short."""
    with pytest.raises((FormatError, CorruptError)):
        api.put(make_blob()[:nbytes], PutNote())


@pytest.mark.parametrize("note", [PutNote(recompute_s=float("nan")), PutNote(recompute_s=-1.0), PutNote(source="x" * 5000)], ids=str)
def test_a_note_that_cannot_be_is_refused(api: StoreAPI, note: PutNote) -> None:
    """Eviction by value must not meet NaN."""
    with pytest.raises(InvalidInputError):
        api.put(make_blob(), note)
