"""Leases: what a client reads in place stays as it is while the lease lasts, and is free when it ends, however it ends."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kvclient.lanes.frames import Found, Kind, pack_count, pack_keys, parse_directory, parse_placed, parse_receipt
from kvclient.lanes.socket_frames import SocketFrames
from kvclient.lanes.window import Window
from kvclient.remote import RemoteStore
from kvstore.core.api import PutNote
from kvstore.core.blob import header_nbytes
from kvstore.core.errors import KVError, TierUnavailableError
from kvstore.core.pool import BufferPool
from kvstore.server.grpc_server import RpcServer
from kvstore.server.lanes import leases as leases_module
from kvstore.server.lanes import session as session_module
from kvstore.server.lanes.leases import LEASE_S, Leases
from kvstore.server.lanes.session import RING_NBYTES
from kvstore.server.service import StoreService
from kvstore.store.memory import BlockLanding, MemoryTier
from tests.lanes.raw import connect, doors_of, greeted, offer, soon, until
from tests.server.chunks import key, make_blob, make_service
from tests.server.raw import body_of, head_of
from tests.server.serving import TOKENS, dialing, serving
from tests.server.ways import parts_of, read, read_parts

BLOB = make_blob(part_nbytes=50_000)
OTHER = make_blob(1, part_nbytes=50_000)
CLIENT = """
import sys
from kvclient.remote import RemoteStore
from kvclient.lanes.frames import Kind
from kvstore.core.api import PutNote
from tests.lanes.raw import soon
from tests.server.chunks import key, make_blob
from tests.server.raw import body_of, head_of

remote = RemoteStore(sys.argv[1], sys.argv[2], lane="shm")
readers = [remote.view(key(make_blob(part_nbytes=50_000))) for _ in range(3)]
parts = [bytes(reader.part(0)) for reader in readers]
line = remote._lanes.take(soon())._connections.take(soon())
new = make_blob(7, part_nbytes=600_000)
if sys.argv[3] == "staged":
    remote._lanes.take(soon())._stage(line, soon())
    line.send(Kind.PUT_STAGED, head_of(new), soon(), body_nbytes=len(body_of(new)))
else:
    line.send(Kind.PUT, head_of(new), soon(), body_of(new)[:100_000], body_nbytes=len(body_of(new)))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def service() -> Iterator[StoreService]:
    """A store with a chunk in shared memory."""
    made = make_service()
    made.bind("alpha").put(BLOB, PutNote())
    yield made
    made.close()


@pytest.fixture
def server(service: StoreService) -> Iterator[RpcServer]:
    """A server of it."""
    with serving(service) as running:
        yield running


def used_bytes(service: StoreService) -> int:
    """Return what the memory tier holds for records and their readers."""
    return service.store.tier_stats()[0].used_bytes


class Clock:
    """Seconds that pass when told."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def landing_of(tier: MemoryTier, name: bytes = b"a") -> BlockLanding:
    """Put a record and open it."""
    tier.put(name, [bytes(20_000)])
    landing = tier.get(name)
    assert landing is not None
    return landing


def test_a_lease_keeps_a_deleted_block_until_it_ends() -> None:
    """By the client's word."""
    tier = MemoryTier(1 << 20, is_shared=True)
    assert tier.shared is not None
    leases = Leases(tier.shared)
    place = leases.grant(landing_of(tier))
    assert place is not None
    tier.delete(b"a")
    assert tier.used_bytes > 0
    leases.end([place.lease, 99])
    assert tier.used_bytes == 0
    tier.close()


def test_a_lease_ends_when_its_time_is_over() -> None:
    """For a client that hangs."""
    tier, clock = MemoryTier(1 << 20, is_shared=True), Clock()
    assert tier.shared is not None
    leases = Leases(tier.shared, clock=clock)
    leases.grant(landing_of(tier))
    tier.delete(b"a")
    clock.now_s = LEASE_S - 0.1
    assert (leases.expire(), tier.used_bytes > 0) == (0, True)
    clock.now_s = LEASE_S
    assert (leases.expire(), tier.used_bytes) == (1, 0)
    tier.close()


def test_no_connection_holds_more_leases_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes beyond is sent instead of shown."""
    monkeypatch.setattr(leases_module, "MAX_LEASES", 2)
    tier = MemoryTier(1 << 20, is_shared=True)
    assert tier.shared is not None
    leases = Leases(tier.shared)
    granted = [leases.grant(landing_of(tier, name)) for name in (b"a", b"b", b"c")]
    assert [place is None for place in granted] == [False, False, True]
    leases.close()
    tier.close()


def test_a_view_stays_right_while_its_chunk_is_deleted_and_memory_is_short(service: StoreService, server: RpcServer) -> None:
    """Its block is not given to another chunk."""
    with dialing(server, lane="shm") as remote:
        reader = remote.view(key(BLOB))
        assert reader is not None
        part = reader.part(1)
        remote.delete([key(BLOB)])
        for seed in range(2, 12):
            remote.put(make_blob(seed, part_nbytes=2_000_000), PutNote())
        assert bytes(part) == parts_of(BLOB)[1]
        assert bytes(reader.part(2)) == parts_of(BLOB)[2]
        reader.close()


def end_leases(server: RpcServer) -> None:
    """Let the time of every lease be over."""
    for listener in doors_of(server)._listeners:
        for session in listener._all():
            if session._sharing:
                session._sharing[0]._clock = lambda: time.monotonic() + LEASE_S
                session.expire()


@pytest.mark.parametrize("ask", [RemoteStore.get, RemoteStore.view], ids=["get", "view"])
def test_a_lease_that_ended_too_early_is_a_typed_error(service: StoreService, server: RpcServer, ask: Callable[..., object]) -> None:
    """The block holds another chunk by then, and its bytes are not handed out."""
    large, before = make_blob(3, part_nbytes=800_000), used_bytes(service)
    service.bind("alpha").put(large, PutNote())
    with dialing(server, lane="shm") as remote:
        reader = ask(remote, key(large))
        end_leases(server)
        service.bind("alpha").delete([key(large)])
        until(lambda: used_bytes(service) == before)  # until whoever answered has let go of the block, it stays as it is
        service.bind("alpha").put(OTHER, PutNote())
        with pytest.raises(TierUnavailableError, match="lease ended"):
            reader.part(2)  # type: ignore[attr-defined]
        assert remote.get(key(large)) is None
        assert read(remote, OTHER) == parts_of(OTHER)


@pytest.mark.parametrize("way", ["staged", "by the socket"])
def test_a_client_that_is_killed_frees_what_it_held(service: StoreService, server: RpcServer, way: str) -> None:
    """Three views of a chunk that is deleted, and a put that was begun: block, budget and connections come back."""
    command = [sys.executable, "-c", CLIENT, server.address, TOKENS["alpha"], way]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        service.bind("alpha").delete([key(BLOB)])
        until(lambda: used_bytes(service) > len(BLOB) + 1_800_000)
        client.send_signal(signal.SIGKILL)
    until(lambda: used_bytes(service) == 0)
    assert server.budget.lent_bytes == 0
    with dialing(server, lane="shm") as next_client:
        assert next_client.get(key(make_blob(7, part_nbytes=600_000))) is None


def staged(frames: SocketFrames, blob: bytes | bytearray) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Ask for a ring, announce a put and return the ring."""
    frames.reads_ahead = False
    frames.send(Kind.STAGE, b"", soon())
    nbytes = int.from_bytes(frames.expect(Kind.STAGED, soon())[0], "little")
    descriptor = frames.receive_descriptor(soon())
    frames.reads_ahead = True
    ring = np.frombuffer(mmap.mmap(descriptor, nbytes), np.uint8)
    os.close(descriptor)
    frames.send(Kind.PUT_STAGED, head_of(blob), soon(), body_nbytes=len(body_of(blob)))
    return ring


def test_what_is_written_to_the_ring_behind_a_put_changes_nothing(server: RpcServer) -> None:
    """The store took a copy, and it is the copy that it verified."""
    new = make_blob(5, part_nbytes=60_000)
    body = np.frombuffer(body_of(new), np.uint8)
    with greeted(server, "shm") as frames, dialing(server, lane="shm") as honest:
        ring = staged(frames, new)
        ring[: body.size] = body
        frames.send(Kind.LANDED, pack_count(body.size), soon())
        assert parse_receipt(frames.expect(Kind.STORED, soon())[0]).stored
        ring[:] = 255
        assert read(honest, new) == parts_of(new)
        del ring


def test_a_ring_that_changes_while_it_is_taken_is_data_loss(service: StoreService, server: RpcServer) -> None:
    """What was verified is what is kept: never what the writer put there meanwhile."""
    new = make_blob(5, part_nbytes=60_000)
    body = np.frombuffer(body_of(new), np.uint8)
    outcomes = set()
    with greeted(server, "shm") as frames:
        for at in range(0, body.size, 20_011):
            ring = staged(frames, new)
            ring[: body.size] = body
            half = body.size // 2
            frames.send(Kind.LANDED, pack_count(half), soon())
            ring[at] ^= 1
            frames.send(Kind.LANDED, pack_count(body.size - half), soon())
            outcomes.add(answer(frames))
            held = service.bind("alpha").get(key(new))
            assert held is None or read_parts(held) == parts_of(new)
            service.bind("alpha").delete([key(new)])
        del ring
    assert "CorruptError" in outcomes


def test_a_chunk_goes_through_a_ring_of_any_length(server: RpcServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store tells of halves of it, so a client that announced more than half could wait for what nobody tells of."""
    monkeypatch.setattr(session_module, "RING_NBYTES", 128 << 10)
    new = make_blob(5, part_nbytes=100_003)
    with dialing(server, lane="shm") as honest:
        assert honest.put(new, PutNote()).stored
        assert read(honest, new) == parts_of(new)


def answer(frames: SocketFrames) -> str:
    """Return what came of a put."""
    try:
        frames.expect(Kind.STORED, soon())
    except KVError as error:
        return type(error).__name__
    return "stored"


@pytest.mark.parametrize("nbytes", [0, RING_NBYTES + 1, 2**64 - 1])
def test_a_ring_that_claims_more_than_it_holds_is_refused(server: RpcServer, nbytes: int) -> None:
    """Or nothing, for ever."""
    with greeted(server, "shm") as frames:
        ring = staged(frames, make_blob(5, part_nbytes=60_000))
        frames.send(Kind.LANDED, pack_count(nbytes), soon())
        with pytest.raises(KVError):
            frames.expect(Kind.LANDED, soon())
        del ring
    with dialing(server, lane="shm") as honest:
        assert read(honest, BLOB) == parts_of(BLOB)


def test_a_lease_of_another_connection_can_not_be_ended(service: StoreService, server: RpcServer) -> None:
    """Numbers of leases are each connection's own."""
    with dialing(server, lane="shm") as remote, greeted(server, "shm") as hostile:
        reader = remote.view(key(BLOB))
        assert reader is not None
        hostile.send(Kind.VIEW, pack_keys([], range(4096)), soon())
        assert parse_placed(hostile.expect(Kind.PLACED, soon())[0], 0) == []
        remote.delete([key(BLOB)])
        remote.put(OTHER, PutNote())
        assert bytes(reader.part(2)) == parts_of(BLOB)[2]
        reader.close()


def place_of(frames: SocketFrames) -> Found:
    """Ask where the chunk lies."""
    frames.send(Kind.VIEW, pack_keys([key(BLOB)]), soon())
    return parse_placed(frames.expect(Kind.PLACED, soon())[0], 1)[0]


def test_a_generation_says_when_a_block_became_another(service: StoreService, server: RpcServer) -> None:
    """Before anything is written to it."""
    offered = offer(server)
    frames = SocketFrames(connect(offered, "shm"), "shm")
    frames.reads_ahead = False
    frames.send(Kind.HELLO, offered.ticket, soon())
    directory = parse_directory(frames.expect(Kind.WELCOME, soon())[0])
    descriptor = frames.receive_descriptor(soon())
    window = Window(descriptor, directory, BufferPool(0), len(BLOB))
    first = place_of(frames).place
    assert first is not None
    window.check(first)
    frames.close()
    service.bind("alpha").delete([key(BLOB)])
    until(lambda: used_bytes(service) == 0)
    with pytest.raises(TierUnavailableError):
        window.check(first)
    os.close(descriptor)


def test_a_header_is_all_that_a_put_needs_to_hold_memory(server: RpcServer) -> None:
    """And its connection's end gives it back: nothing was committed."""
    new = make_blob(6, part_nbytes=600_000)
    assert header_nbytes(new[:64]) < 4096
    with greeted(server, "shm") as frames:
        frames.send(Kind.PUT, head_of(new), soon(), body_of(new)[:1000], body_nbytes=len(body_of(new)))
        until(lambda: server.budget.lent_bytes > 0)
    until(lambda: server.budget.lent_bytes == 0)
