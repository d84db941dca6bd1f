"""What every way to reach a store must do with many chunks at once, with chunks of every size, and with bytes that come late."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from kvclient.lanes.frames import Kind
from kvclient.lanes.socket_frames import SocketFrames
from kvstore.core.api import PutNote, StoreAPI
from kvstore.core.blob import parse_header
from kvstore.core.errors import ClosedError
from kvstore.server.service import BoundStore, StoreService
from tests.server.chunks import blob_of, key, make_blob, make_service
from tests.server.slow import Gate, make_slow_service
from tests.server.ways import WAYS, parts_of, reaching, read, read_parts

MIB = 1 << 20
BORDERS = (16 << 10, 64 << 10, 512 << 10, MIB, 2 * MIB, 8 * MIB)


@pytest.fixture
def service() -> Iterator[StoreService]:
    """The store behind every transport of a test."""
    made = make_service(128 * MIB, 32 * MIB)
    yield made
    made.close()


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """One way to reach a store."""
    return str(request.param)


@pytest.fixture
def api(service: StoreService, way: str) -> Iterator[StoreAPI]:
    """One tenant's view."""
    with reaching(service, way) as views:
        yield views["alpha"]


@pytest.mark.parametrize("border", BORDERS, ids=lambda border: f"{border >> 10} KiB")
def test_chunks_around_a_border_come_back_as_they_were(api: StoreAPI, border: int) -> None:
    """Messages, inline answers and staging rings end somewhere; both whole chunks and what stands behind their header meet each end."""
    header_nbytes = parse_header(blob_of(border)).parts_offset
    for seed, nbytes in enumerate({end + step for end in (border, border + header_nbytes) for step in (-1, 0, 1)}):
        blob = blob_of(nbytes, seed)
        assert api.put(blob, PutNote()).stored
        assert read(api, blob) == parts_of(blob), nbytes


@pytest.mark.parametrize("nbytes", [8 * MIB + 100_000, 17 * MIB, 24 * MIB + 1], ids=lambda nbytes: f"{nbytes} B")
def test_a_chunk_larger_than_any_ring_comes_back_as_it_was(api: StoreAPI, nbytes: int) -> None:
    """Whatever memory lies between, it is used again and again."""
    blob = blob_of(nbytes)
    api.put(blob, PutNote())
    assert read(api, blob) == parts_of(blob)


def test_a_large_put_behind_another_begins_anew(api: StoreAPI) -> None:
    """What the last put left in a buffer does not reach the next."""
    for seed, nbytes in enumerate((9 * MIB, 3 * MIB + 7, 20_000, 9 * MIB + 64)):
        blob = blob_of(nbytes, seed)
        api.put(blob, PutNote())
        assert read(api, blob) == parts_of(blob)


@pytest.mark.parametrize("part_nbytes", [1000, 100_000])
def test_the_second_put_of_an_equal_chunk_tells_that_it_stored_nothing(api: StoreAPI, part_nbytes: int) -> None:
    """And where the chunk is."""
    blob = make_blob(part_nbytes=part_nbytes)
    first, second = api.put(blob, PutNote()), api.put(blob, PutNote())
    assert (first.stored, second.stored) == (True, False)
    assert (second.key, second.tier, second.nbytes) == (key(blob), "memory", len(blob))


def test_a_batch_answers_in_the_order_of_its_keys_with_none_for_a_miss(api: StoreAPI) -> None:
    """Hits of every size and misses mixed, and one key twice."""
    blobs = [make_blob(seed, part_nbytes=nbytes) for seed, nbytes in enumerate((10, 5_400, 100_000, 700_000))]
    for blob in blobs:
        api.put(blob, PutNote())
    asked = [blobs[2], make_blob(90), blobs[0], blobs[3], make_blob(91), blobs[1], blobs[0]]
    answers = [read_parts(reader) for reader in api.get_batch([key(blob) for blob in asked])]
    assert answers == [parts_of(blob) if blob in blobs else None for blob in asked]


def test_a_batch_of_nothing_and_a_batch_of_misses_hold_nothing(api: StoreAPI) -> None:
    """The next call finds its connection free."""
    assert api.get_batch([]) == []
    for _ in range(10):
        assert api.get_batch([key(make_blob(seed)) for seed in range(3)]) == [None] * 3


@pytest.mark.parametrize("part_nbytes", [1000, 5_400, 700_000])
def test_readers_of_a_batch_can_be_read_in_any_order(api: StoreAPI, part_nbytes: int) -> None:
    """And their parts too."""
    blobs = [make_blob(seed, part_nbytes=part_nbytes) for seed in range(5)]
    for blob in blobs:
        api.put(blob, PutNote())
    readers = api.get_batch([key(blob) for blob in blobs])
    for index in random.Random(0).sample(range(5), 5):
        assert read_parts(readers[index], [2, 0, 1]) == parts_of(blobs[index])


@pytest.mark.parametrize("part_nbytes", [1000, 700_000])
@pytest.mark.parametrize("closed", [{0}, {2}, {4}, {0, 1, 3}])
def test_a_reader_that_is_closed_early_leaves_the_others_of_its_batch_alone(api: StoreAPI, part_nbytes: int, closed: set[int]) -> None:
    """A plan drops what comes too late and goes on with the rest."""
    blobs = [make_blob(seed, part_nbytes=part_nbytes) for seed in range(5)]
    for blob in blobs:
        api.put(blob, PutNote())
    readers = api.get_batch([key(blob) for blob in blobs])
    for index in sorted(closed):
        if reader := readers[index]:
            reader.close()
            with pytest.raises(ClosedError):
                reader.part(0)
    for index in set(range(5)) - closed:
        assert read_parts(readers[index]) == parts_of(blobs[index])


def test_batches_that_nobody_reads_to_the_end_do_not_stop_the_next_call(api: StoreAPI) -> None:
    """More of them than there are connections."""
    blobs = [make_blob(seed, part_nbytes=400_000) for seed in range(2)]
    for blob in blobs:
        api.put(blob, PutNote())
    for _ in range(20):
        for reader in api.get_batch([key(blob) for blob in blobs]):
            assert reader is not None
            reader.close()
    assert read(api, blobs[0]) == parts_of(blobs[0])


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every request that asks a lane for chunks, as the side that sees it first notes it."""
    noted: list[str] = []
    send, bind = SocketFrames.send, StoreService.bind

    def noting_send(frames: SocketFrames, kind: Kind, *args: object, **more: object) -> None:
        if kind in (Kind.GET, Kind.VIEW):
            noted.append(kind.name)
        send(frames, kind, *args, **more)  # type: ignore[arg-type]

    def noting_bind(service: StoreService, tenant: str) -> BoundStore:
        noted.append("call")  # of gRPC; a connection of another lane is bound once
        return bind(service, tenant)

    monkeypatch.setattr(SocketFrames, "send", noting_send)
    monkeypatch.setattr(StoreService, "bind", noting_bind)
    return noted


@pytest.mark.parametrize("part_nbytes", [300, 30_000, 200_000])
def test_a_batch_is_one_round_trip(api: StoreAPI, way: str, questions: list[str], part_nbytes: int) -> None:
    """By gRPC one more where the chunks don't fit into one message of 1 MiB."""
    blobs = [make_blob(seed, part_nbytes=part_nbytes) for seed in range(8)]
    for blob in blobs:
        api.put(blob, PutNote())
    questions.clear()
    readers = api.get_batch([key(blob) for blob in blobs])
    assert [read_parts(reader) for reader in readers] == [parts_of(blob) for blob in blobs]
    most = {"embedded": 0, "cluster": 0, "grpc": 1 if sum(map(len, blobs)) <= MIB else 2}.get(way, 1)
    assert len(questions) == most


@pytest.fixture
def late(way: str) -> Iterator[tuple[StoreAPI, Gate]]:
    """A store whose tier is slow, and what lets its bytes through."""
    service, gate = make_slow_service()
    with reaching(service, way) as views:
        yield views["alpha"], gate
        gate.open()
    service.close()


def test_a_part_can_be_read_while_later_ones_are_still_on_the_way(late: tuple[StoreAPI, Gate]) -> None:
    """A model's first layers can start."""
    api, gate = late
    blob = make_blob(part_nbytes=3 * MIB)
    api.put(blob, PutNote())
    gate.release(5 * MIB)
    reader = api.get(key(blob))
    assert reader is not None
    assert bytes(reader.part(0)) == parts_of(blob)[0]
    gate.open()
    assert read_parts(reader) == parts_of(blob)


def test_a_chunk_that_is_closed_while_it_arrives_frees_what_brings_it(late: tuple[StoreAPI, Gate]) -> None:
    """The store stops reading it too, and the next chunk comes."""
    api, gate = late
    blobs = [make_blob(seed, part_nbytes=3 * MIB) for seed in range(2)]
    for blob in blobs:
        api.put(blob, PutNote())
    gate.release(5 * MIB)
    reader = api.get(key(blobs[0]))
    assert reader is not None
    reader.part(0)
    reader.close()
    gate.open()
    assert read(api, blobs[1]) == parts_of(blobs[1])
