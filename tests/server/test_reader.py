"""Reading a chunk in the store's own process: damage in one copy is answered from the next, and nobody notices."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvstore.core.api import Hit, PutNote, Status
from kvstore.core.blob import HEADER_NBYTES, header_nbytes, verify_blob
from kvstore.core.errors import ClosedError, CorruptError, FormatError
from kvstore.core.key import storage_key, tenant_secret
from kvstore.core.reading import land_all
from kvstore.server.reader import StoredReader
from kvstore.server.service import StoreService
from kvstore.store.epochs import Epochs
from kvstore.store.memory import MemoryTier
from kvstore.store.results import Opened
from kvstore.store.tier import Tier, TierInfo
from kvstore.store.tiered import TieredStore
from tests.server.chunks import MASTER_SECRET, key, make_blob, make_service
from tests.store.faulty import FaultyTier, remote
from tests.store.stores import corrupt

BLOB = make_blob(1)
PLACE = storage_key(tenant_secret(MASTER_SECRET, "alpha"), 0, 0, key(BLOB))
PARTS = [bytes(BLOB[part.offset : part.offset + part.nbytes]) for part in verify_blob(BLOB).manifest.parts]
OpenService = Callable[..., StoreService]


@pytest.fixture
def open_service() -> Iterator[OpenService]:
    """Open services that are closed behind the test, with `BLOB` in every tier of each."""
    opened: list[StoreService] = []

    def make(*tiers: Tier) -> StoreService:
        opened.append(StoreService(TieredStore(tiers), Epochs(), MASTER_SECRET, 1 << 20))
        opened[-1].bind("alpha").put(BLOB, PutNote())
        assert opened[-1].store.drain()
        return opened[-1]

    yield make
    for service in opened:
        service.close()


def slow(tier: MemoryTier, name: str) -> FaultyTier:
    """Return a local tier behind memory."""
    return FaultyTier(tier, TierInfo(name, tier.info.capacity_bytes))


def reader_of(service: StoreService) -> StoredReader:
    """Open `BLOB`."""
    reader = service.bind("alpha").get(key(BLOB), timeout_s=10.0)
    assert reader is not None
    return reader


def damage(tier: MemoryTier, index: int) -> None:
    """Flip one bit of a part."""
    corrupt(tier, PLACE, verify_blob(BLOB).manifest.parts[index].offset - len(BLOB))


@pytest.mark.parametrize("damaged", [0, 1, 2])
def test_a_damaged_part_is_read_from_the_next_copy(open_service: OpenService, damaged: int) -> None:
    """Parts that were handed out before stay; those behind come from the new copy; the old one is quarantined and counted once."""
    memory, second = MemoryTier(1 << 20), MemoryTier(1 << 20)
    service = open_service(memory, slow(second, "second"))
    damage(memory, damaged)
    reader = reader_of(service)
    assert [reader.part(index) for index in range(3)] == PARTS
    assert (reader.tier, service.store.counters["quarantined"], second.find([PLACE])[0] is not None) == ("second", 1, True)


def test_damage_in_the_manifest_is_answered_from_the_next_copy(open_service: OpenService) -> None:
    """Found before the reader has anything in hand."""
    memory, second = MemoryTier(1 << 20), MemoryTier(1 << 20)
    service = open_service(memory, slow(second, "second"))
    corrupt(memory, PLACE, HEADER_NBYTES + 5 - len(BLOB))
    reader = reader_of(service)
    assert (reader.tier, [reader.part(index) for index in range(3)]) == ("second", PARTS)


def test_three_damaged_copies_in_a_row_are_passed_over(open_service: OpenService) -> None:
    """Each for a part of its own, in one reading."""
    tiers = [MemoryTier(1 << 20) for _ in range(4)]
    service = open_service(tiers[0], slow(tiers[1], "second"), slow(tiers[2], "third"), remote(tiers[3]))
    for index, tier in enumerate(tiers[:3]):
        damage(tier, index)
    reader = reader_of(service)
    assert [reader.part(index) for index in range(3)] == PARTS
    assert (reader.tier, service.store.counters["quarantined"]) == ("remote", 3)


def test_a_part_whose_every_copy_is_damaged_is_an_error_and_then_a_miss(open_service: OpenService) -> None:
    """The parts before it were right."""
    memory, far = MemoryTier(1 << 20), MemoryTier(1 << 20)
    service = open_service(memory, remote(far))
    damage(memory, 2)
    damage(far, 2)
    reader = reader_of(service)
    assert [reader.part(index) for index in range(2)] == PARTS[:2]
    with pytest.raises(CorruptError):
        reader.part(2)
    assert service.bind("alpha").get(key(BLOB)) is None
    assert service.store.counters["quarantined"] == 2


def test_threads_that_meet_the_same_damage_take_one_copy_out_of_sight(open_service: OpenService) -> None:
    """The second one to find out must not condemn the sound copy that the first one went on with."""
    memory, second = MemoryTier(1 << 20), MemoryTier(1 << 20)
    service = open_service(memory, slow(second, "second"))
    damage(memory, 0)
    reader = reader_of(service)
    barrier, damaged = threading.Barrier(4), reader._reader

    def part(index: int) -> memoryview:
        barrier.wait()  # all of them meet the damage before any of them acts on it
        return damaged.part(index)

    reader._reader = type("Slow", (), {"part": staticmethod(part), "manifest": damaged.manifest})()  # type: ignore[assignment]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(reader.part, [0] * 4)) == [PARTS[0]] * 4
    assert (service.store.counters["quarantined"], second.find([PLACE])[0] is not None) == (1, True)


def test_a_reader_that_closes_in_the_middle_keeps_what_it_has(open_service: OpenService) -> None:
    """Here the rest is still far away, and nobody receives it."""
    far = MemoryTier(1 << 20)
    open_service(MemoryTier(1 << 20), remote(far))
    again = remote(far)
    service = StoreService(TieredStore([MemoryTier(64), again]), Epochs(), MASTER_SECRET, 1)
    reader = reader_of(service)
    first = reader.part(0)
    reader.close()
    reader.close()
    with pytest.raises(ClosedError):
        reader.part(1)
    assert (first, again.closed) == (PARTS[0], 1)
    service.close()


def test_opening_several_chunks_keeps_their_order(open_service: OpenService) -> None:
    """A miss stands where its key stood."""
    api = open_service(MemoryTier(1 << 20)).bind("alpha")
    other = make_blob(2)
    api.put(other, PutNote())
    readers = api.get_batch([key(other), key(make_blob(3)), key(BLOB), key(other)])
    assert [None if reader is None else bytes(reader.part(0)) for reader in readers] == [
        None if blob is None else bytes(blob[verify_blob(blob).manifest.parts[0].offset :][:1000]) for blob in (other, None, BLOB, other)
    ]


def test_a_read_hands_out_what_a_remote_reader_verifies_itself(open_service: OpenService) -> None:
    """And tells the reason of a miss."""
    api = open_service(MemoryTier(1 << 20)).bind("alpha")
    opened = api.read(key(BLOB))
    assert isinstance(opened, Opened)
    assert (opened.landing.view, opened.tier) == (BLOB, "memory")
    assert api.read(key(make_blob(5))) == Hit(key(make_blob(5)), Status.ABSENT, reason="never_stored")


def test_scrubbing_counts_the_chunks_that_had_a_damaged_copy(open_service: OpenService) -> None:
    """A client says what it could not use; the store looks for itself before it believes that."""
    memory = MemoryTier(1 << 20)
    api = open_service(memory).bind("alpha")
    other = make_blob(2)
    api.put(other, PutNote())
    damage(memory, 1)
    assert api.scrub([key(BLOB), key(other), key(make_blob(3))]) == 1
    assert [hit.status for hit in api.lookup([key(BLOB), key(other)])] == [Status.ABSENT, Status.READY]


def test_a_put_in_place_is_what_a_put_is() -> None:
    """Header first, then the rest where it belongs; what was begun and not committed is nowhere."""
    service = make_service()
    api, end = service.bind("alpha"), header_nbytes(BLOB)
    draft = api.begin_put(BLOB[:end], PutNote(source="book"))
    assert (len(draft.blob), draft.blob[:end]) == (len(BLOB), BLOB[:end])
    assert api.get(key(BLOB)) is None
    draft.blob[end:] = BLOB[end:]
    receipt = api.commit_put(draft, durable=False)
    assert (receipt.key, receipt.stored, receipt.tier, receipt.nbytes) == (key(BLOB), True, "memory", len(BLOB))
    (entry,) = api.entries()
    assert (entry.source, entry.key) == ("book", key(BLOB))
    assert not api.put(BLOB, PutNote()).stored
    with pytest.raises((CorruptError, FormatError)):
        api.begin_put(bytes([BLOB[0] ^ 1]) + BLOB[1:end], PutNote())
    service.close()


def test_a_tenant_is_bound_once() -> None:
    """Its storage keys are computed once, whoever asks; another tenant's view is another."""
    service = make_service()
    assert service.bind("alpha") is service.bind("alpha")
    assert service.bind("alpha") is not service.bind("beta")
    service.close()


def test_what_is_read_from_a_remote_copy_lands_whole(open_service: OpenService) -> None:
    """All of the chunk, with its padding, as a server passes it on."""
    far = MemoryTier(1 << 20)
    open_service(MemoryTier(1 << 20), remote(far))
    service = StoreService(TieredStore([MemoryTier(64), remote(far)]), Epochs(), MASTER_SECRET, 1)
    opened = service.bind("alpha").read(key(BLOB))
    assert isinstance(opened, Opened)
    assert (land_all(opened.landing).manifest, opened.landing.view) == (verify_blob(BLOB).manifest, BLOB)
    service.close()
