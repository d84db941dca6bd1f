"""Layer groups as they come: the first can be used while later ones are still on the way, on every lane."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvclient.lanes.choice import LaneName
from kvstore.core.api import BlobReader, PutNote
from kvstore.core.blob import parse_header
from kvstore.core.errors import DeadlineError, KVError
from kvstore.server.grpc_server import RpcServer
from kvstore.server.service import StoreService
from tests.lanes.raw import until
from tests.server.chunks import key, make_blob
from tests.server.serving import dialing, serving
from tests.server.slow import Gate, make_slow_service
from tests.server.ways import LANES, parts_of

BLOB = make_blob(n_parts=4, part_nbytes=2 << 20)
ONE_PART = parse_header(BLOB).manifest.parts[1].offset + (1 << 20)  # all of the first, the front of the second


@pytest.fixture
def slow() -> tuple[StoreService, Gate]:
    """A store with a chunk in a tier that is slow, and what holds its bytes back."""
    service, gate = make_slow_service()
    service.bind("alpha").put(BLOB, PutNote())
    return service, gate


@pytest.fixture
def gate(slow: tuple[StoreService, Gate]) -> Gate:
    """What holds the bytes back."""
    return slow[1]


@pytest.fixture
def server(slow: tuple[StoreService, Gate]) -> Iterator[RpcServer]:
    """A server of it."""
    with serving(slow[0]) as running:
        yield running


@pytest.fixture(params=LANES)
def lane(request: pytest.FixtureRequest) -> LaneName:
    """The lane that is read by."""
    lane: LaneName = request.param
    return lane


def opened(reader: BlobReader | None) -> BlobReader:
    """Return a reader of the chunk, which is there."""
    assert reader is not None
    return reader


def test_the_first_layer_group_is_read_while_the_others_are_on_the_way(server: RpcServer, gate: Gate, lane: LaneName) -> None:
    """A model begins with it."""
    gate.release(ONE_PART)
    with dialing(server, lane=lane) as remote:
        reader = opened(remote.get(key(BLOB)))
        assert bytes(reader.part(0)) == parts_of(BLOB)[0]
        gate.open()
        assert [bytes(reader.part(index)) for index in (1, 2, 3)] == parts_of(BLOB)[1:]
        reader.close()


def test_each_layer_group_is_read_when_it_came(server: RpcServer, gate: Gate, lane: LaneName) -> None:
    """One piece of 1 MiB behind its end at the latest."""
    with dialing(server, lane=lane) as remote:
        gate.release(ONE_PART)
        reader = opened(remote.get(key(BLOB)))
        for index, part in enumerate(parse_header(BLOB).manifest.parts):
            gate.release(part.offset + part.nbytes + (1 << 20) + 4096)
            assert bytes(reader.part(index)) == parts_of(BLOB)[index]
        reader.close()


def test_a_layer_group_that_does_not_come_is_a_typed_error_by_the_deadline(server: RpcServer, gate: Gate, lane: LaneName) -> None:
    """What came before stays right."""
    gate.release(ONE_PART)
    with dialing(server, lane=lane) as remote:
        reader = opened(remote.get(key(BLOB), timeout_s=0.4))
        first = reader.part(0)
        with pytest.raises(DeadlineError):
            reader.part(3)
        assert bytes(first) == parts_of(BLOB)[0]
        reader.close()
        gate.open()


def test_a_reader_that_leaves_early_lets_the_slow_tier_go(server: RpcServer, gate: Gate, lane: LaneName) -> None:
    """Nobody receives for nobody."""
    gate.release(ONE_PART)
    with dialing(server, lane=lane) as remote:
        reader = opened(remote.get(key(BLOB)))
        assert bytes(reader.part(0)) == parts_of(BLOB)[0]
        reader.close()
        with pytest.raises(KVError, match="closed"):
            reader.part(1)
        gate.open()
        until(lambda: gate.n_ended == 1)
        until(lambda: server.budget.lent_bytes == 0)


def test_the_first_chunk_of_a_batch_is_read_before_the_second_came(server: RpcServer, gate: Gate, lane: LaneName) -> None:
    """They come in the order of their keys."""
    second = make_blob(1, n_parts=1, part_nbytes=5 << 20)
    with dialing(server, lane=lane) as remote:
        remote.put(second, PutNote())
        gate.release(len(BLOB) + 4096)
        readers = [opened(reader) for reader in remote.get_batch([key(BLOB), key(BLOB)])]
        assert bytes(readers[0].part(3)) == parts_of(BLOB)[3]
        gate.open()
        assert bytes(readers[1].part(0)) == parts_of(BLOB)[0]
        for reader in readers:
            reader.close()
