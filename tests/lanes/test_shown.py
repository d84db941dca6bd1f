"""Puts whose bytes the store reads where they lie, in the memory of its client: right or not at all, and by a ring where it may not."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import numpy as np
import pytest

from kvclient.lanes.frames import Kind, parse_count, parse_receipt
from kvclient.lanes.put_frames import PROOF_NBYTES, Shown, pack_put_shown, pack_shown
from kvclient.lanes.socket_frames import SocketFrames
from kvstore.core.api import PutNote
from kvstore.core.errors import CorruptError, KVError, TierUnavailableError
from kvstore.server.grpc_server import RpcServer
from kvstore.server.lanes import receiving
from kvstore.server.lanes.peer_memory import read_memory
from kvstore.server.service import StoreService
from tests.lanes.raw import greeted, hide_memory, soon
from tests.server.chunks import key, make_blob, make_service
from tests.server.raw import body_of, header_of
from tests.server.serving import dialing, serving
from tests.server.ways import parts_of, read

BLOB = make_blob(part_nbytes=700_001)
OTHER = make_blob(1, part_nbytes=50_000)
BODY = body_of(BLOB)


@pytest.fixture
def service() -> Iterator[StoreService]:
    """An empty store."""
    made = make_service()
    yield made
    made.close()


@pytest.fixture
def server(service: StoreService) -> Iterator[RpcServer]:
    """A server with every lane."""
    with serving(service) as running:
        yield running


def calls(service: StoreService) -> dict[str, int]:
    """Return how many requests of each kind came over shared memory and its socket."""
    return {call: times.snapshot()[0][-1] for (lane, call), times in service.lane_calls.times().items() if lane == "shm"}


def address_of(data: bytes | bytearray) -> int:
    """Return where bytes lie in this process."""
    return int(np.frombuffer(data, np.uint8).ctypes.data)


def put_at(frames: SocketFrames, address: int) -> None:
    """Say that the body of `BLOB` lies at an address, and wait for the receipt."""
    frames.send(Kind.PUT_SHOWN, pack_put_shown(address, PutNote(), header_of(BLOB)), soon(), body_nbytes=len(BODY))
    parse_receipt(frames.expect(Kind.STORED, soon())[0])


def test_large_puts_are_read_where_they_lie_and_the_question_is_asked_once(service: StoreService, server: RpcServer) -> None:
    """No ring, and no byte of them through the socket."""
    with dialing(server, lane="shm") as remote:
        for blob in (BLOB, OTHER):
            assert remote.put(blob, PutNote()).stored
            assert read(remote, blob) == parts_of(blob)
    made = calls(service)
    assert (made["show"], made["put_shown"], "stage" in made, "put" in made) == (1, 2, False, False)


def test_where_the_store_may_not_read_its_clients_puts_go_through_a_ring(
    service: StoreService, server: RpcServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question is asked once there, too."""
    hide_memory(monkeypatch)
    with dialing(server, lane="shm") as remote:
        for blob in (BLOB, OTHER):
            assert remote.put(blob, PutNote()).stored
            assert read(remote, blob) == parts_of(blob)
    made = calls(service)
    assert (made["show"], made["stage"], made["put_staged"], "put_shown" in made) == (1, 1, 2, False)


@pytest.mark.parametrize("address", [0, 1, 2**64 - 1, 2**47])
def test_a_place_where_nothing_lies_is_an_error_and_the_connection_goes_on(server: RpcServer, address: int) -> None:
    """A client may lie about its own memory."""
    with greeted(server, "shm") as frames:
        with pytest.raises(TierUnavailableError, match="can't be read"):
            put_at(frames, address)
        put_at(frames, address_of(BODY))
    assert server.budget.lent_bytes == 0


def test_what_is_not_the_chunk_is_not_stored(service: StoreService, server: RpcServer) -> None:
    """One bit of two million bytes."""
    wrong = bytearray(BODY)
    wrong[1_000_000] ^= 1
    with greeted(server, "shm") as frames, pytest.raises(CorruptError):
        put_at(frames, address_of(wrong))
    assert service.bind("alpha").get(key(BLOB)) is None


def test_what_changes_behind_the_read_changes_nothing(service: StoreService, server: RpcServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store took a copy, and it is the copy that it verified."""
    mine = bytearray(BODY)

    def read_and_change(pid: int, address: int, room: memoryview) -> None:
        read_memory(pid, address, room)
        start = address - address_of(mine)
        mine[start : start + room.nbytes] = bytes(room.nbytes)

    monkeypatch.setattr(receiving, "read_memory", read_and_change)
    with greeted(server, "shm") as frames:
        put_at(frames, address_of(mine))
    assert not any(mine)
    assert read(service.bind("alpha"), BLOB) == parts_of(BLOB)


def test_another_process_than_the_one_that_connected_is_not_read(server: RpcServer) -> None:
    """The proof is what lies at the address in the store's own view of its peer."""
    proof = secrets.token_bytes(PROOF_NBYTES)
    with greeted(server, "shm") as frames:
        said = []
        for shown in (Shown(address_of(proof), proof), Shown(address_of(proof), bytes(PROOF_NBYTES)), Shown(8, proof)):
            frames.send(Kind.SHOW, pack_shown(shown), soon())
            said.append(parse_count(frames.expect(Kind.SHOWN, soon())[0]))
    assert said == [1, 0, 0]


def test_over_a_network_nothing_is_shown(server: RpcServer) -> None:
    """Addresses mean nothing to another machine, and the connection ends."""
    with greeted(server, "tcp") as frames, pytest.raises(KVError):
        put_at(frames, address_of(BODY))
