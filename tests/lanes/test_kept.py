"""Viewing a chunk again: without a request while its lease is kept, and never what the store would not show."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvclient.lanes.frames import Place
from kvclient.lanes.kept import MOST, KeptLeases, Lease
from kvclient.lanes.shm import ShmLane
from kvclient.remote import RemoteStore
from kvstore.core.api import PutNote, Scope
from kvstore.server.service import StoreService
from tests.lanes.raw import soon
from tests.server.chunks import key, make_blob, make_service
from tests.server.serving import dialing, serving
from tests.server.ways import parts_of

BLOB = make_blob(0, part_nbytes=700_000)


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def lease_at(offset: int, asked_at: float = 0.0) -> Lease[str]:
    """Return a lease of the block at an offset."""
    return Lease("line", Place(offset, 1, offset, 0), asked_at)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ended() -> list[int]:
    """Which leases ended."""
    return []


@pytest.fixture
def kept(clock: Clock, ended: list[int]) -> KeptLeases[str]:
    return KeptLeases(lambda lease: ended.append(lease.place.lease), clock)


@pytest.fixture
def service() -> Iterator[StoreService]:
    """A store with a chunk."""
    made = make_service(16 << 20)
    made.bind("alpha").put(BLOB, PutNote(source="book"))
    yield made
    made.close()


@pytest.fixture
def remote(service: StoreService) -> Iterator[RemoteStore]:
    """A client that viewed it and closed the view."""
    with serving(service) as server, dialing(server, lane="shm") as dialed:
        assert view(dialed) == parts_of(BLOB)
        yield dialed


@pytest.fixture
def asked(remote: RemoteStore, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many keys each request for chunks had, from now on."""
    numbers: list[int] = []
    lane = lane_of(remote)
    ask = lane._ask
    monkeypatch.setattr(lane, "_ask", lambda keys, *more: numbers.append(len(keys)) or ask(keys, *more))
    return numbers


def lane_of(remote: RemoteStore) -> ShmLane:
    """Return the lane of a client."""
    lane = remote._lanes.take(soon())
    assert isinstance(lane, ShmLane)
    return lane


def view(remote: RemoteStore, blob: bytearray = BLOB) -> list[bytes] | None:
    """View a chunk, copy its parts, and close the view."""
    reader = remote.view(key(blob))
    if reader is None:
        return None
    try:
        return [bytes(reader.part(index)) for index in range(len(reader.manifest.parts))]
    finally:
        reader.close()


def test_a_chunk_is_viewed_again_without_a_request(remote: RemoteStore, asked: list[int]) -> None:
    """Whole and verified."""
    assert (view(remote), view(remote), asked) == (parts_of(BLOB), parts_of(BLOB), [])


def test_two_views_at_once_have_leases_of_their_own(remote: RemoteStore, asked: list[int]) -> None:
    """Closing one leaves the other."""
    first, second = remote.view(key(BLOB)), remote.view(key(BLOB))
    assert first is not None
    assert second is not None
    assert asked == [1]
    first.close()
    assert bytes(second.part(0)) == parts_of(BLOB)[0]
    second.close()


@pytest.mark.parametrize("scope", [Scope("tenant"), Scope("source", "book")], ids=lambda s: s.kind)
def test_an_invalidated_chunk_is_a_miss_at_once(service: StoreService, remote: RemoteStore, scope: Scope) -> None:
    """Though a lease holds its bytes where they are."""
    service.bind("alpha").invalidate(scope)
    assert view(remote) is None


def test_a_deleted_chunk_is_a_miss_and_comes_back(service: StoreService, remote: RemoteStore) -> None:
    """The new one lies elsewhere."""
    service.bind("alpha").delete([key(BLOB)])
    assert view(remote) is None
    service.bind("alpha").put(BLOB, PutNote())
    assert view(remote) == parts_of(BLOB)


def test_a_kept_lease_that_the_store_ended_is_not_used(service: StoreService, remote: RemoteStore, asked: list[int]) -> None:
    """The chunk is asked for."""
    lane = lane_of(remote)
    (offset,) = lane._kept._kept
    lease, until = lane._kept._kept[offset]
    lane._kept._kept[offset] = lease._replace(place=lease.place._replace(generation=lease.place.generation + 1)), until
    assert (view(remote), asked) == (parts_of(BLOB), [1])


def test_a_lease_is_taken_once(kept: KeptLeases[str]) -> None:
    """Two views need two leases."""
    kept.give(lease_at(1))
    assert [kept.take(1), kept.take(1)] == [lease_at(1), None]


def test_a_lease_that_runs_out_soon_ends(kept: KeptLeases[str], clock: Clock, ended: list[int]) -> None:
    """A view would not have its time."""
    kept.give(lease_at(1))
    clock.now = 11.0
    assert (kept.take(1), ended) == (None, [1])


def test_what_is_not_used_for_a_while_ends(kept: KeptLeases[str], clock: Clock, ended: list[int]) -> None:
    """It could not make room for others."""
    kept.give(lease_at(1))
    clock.now = 1.5
    kept.give(lease_at(2))
    clock.now = 2.5
    kept.sweep()
    assert ended == [1]


def test_of_two_leases_of_one_block_one_ends(kept: KeptLeases[str], ended: list[int]) -> None:
    """The later one is kept."""
    kept.give(lease_at(1))
    kept.give(Lease("line", Place(1, 1, 99, 0), 1.0))
    assert (ended, kept.take(1)) == ([1], Lease("line", Place(1, 1, 99, 0), 1.0))


def test_no_more_than_so_many_are_kept(kept: KeptLeases[str], ended: list[int]) -> None:
    """The oldest end."""
    for offset in range(MOST + 3):
        kept.give(lease_at(offset))
    assert ended == [0, 1, 2]
