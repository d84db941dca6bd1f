"""Reading shared memory without a request: what the store would answer is what is read, whatever happens to the chunk meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvclient.lanes import untold
from kvclient.lanes.frames import DirectoryPlace, Kind, pack_keys
from kvclient.lanes.shm import ShmLane
from kvclient.lanes.untold import Untold
from kvclient.lanes.window import Window
from kvclient.remote import RemoteStore
from kvstore.core.api import PutNote, Scope
from kvstore.core.directory import BUCKET_NBYTES, Listed, fingerprint, pack_entry
from kvstore.core.errors import FormatError, KVError, TierUnavailableError
from kvstore.core.landing import Landing
from kvstore.core.pool import BufferPool
from kvstore.server.grpc_server import RpcServer
from kvstore.server.service import StoreService
from tests.lanes.raw import greeted, soon, until
from tests.server.chunks import NAMESPACE, key, make_blob, make_service
from tests.server.serving import TOKENS, dialing, serving
from tests.server.ways import parts_of, read

SMALL, LARGE = make_blob(0, part_nbytes=1000), make_blob(1, part_nbytes=700_000)
CAPACITY_BYTES = 16 << 20
STORE = """
import sys, time
from kvstore.core.api import PutNote
from tests.server.chunks import make_blob, make_service
from tests.server.serving import serving
service = make_service()
service.bind("alpha").put(make_blob(0, part_nbytes=1000), PutNote())
with serving(service) as server:
    print(server.address, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def service() -> Iterator[StoreService]:
    """A store with two chunks."""
    made = make_service(CAPACITY_BYTES)
    for blob in (SMALL, LARGE):
        made.bind("alpha").put(blob, PutNote(source="book"))
    yield made
    made.close()


@pytest.fixture
def server(service: StoreService) -> Iterator[RpcServer]:
    """A server of it."""
    with serving(service) as running:
        yield running


@pytest.fixture
def remote(server: RpcServer) -> Iterator[RemoteStore]:
    """A client that read both chunks, so that they are listed."""
    with dialing(server, lane="shm") as dialed:
        assert [read(dialed, blob) for blob in (SMALL, LARGE)] == [parts_of(SMALL), parts_of(LARGE)]
        yield dialed


def lane_of(remote: RemoteStore) -> ShmLane:
    """Return the lane of a client."""
    lane = remote._lanes.take(soon())
    assert isinstance(lane, ShmLane)
    return lane


@pytest.fixture
def asked(remote: RemoteStore, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many keys each request for chunks had, from now on."""
    numbers: list[int] = []
    lane = lane_of(remote)
    ask = lane._ask
    monkeypatch.setattr(lane, "_ask", lambda keys, *more: numbers.append(len(keys)) or ask(keys, *more))
    return numbers


@pytest.mark.parametrize("blob", [SMALL, LARGE], ids=["small", "large"])
def test_a_chunk_that_was_read_is_read_again_without_a_request(remote: RemoteStore, asked: list[int], blob: bytearray) -> None:
    """Whole and verified."""
    assert (read(remote, blob), asked) == (parts_of(blob), [])


def test_a_chunk_that_another_client_read_needs_no_request(server: RpcServer, remote: RemoteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory is the store's, not the client's."""
    with dialing(server, lane="shm") as other:
        other.get_batch([key(make_blob(9))])
        monkeypatch.setattr(lane_of(other), "_ask", None)
        assert read(other, SMALL) == parts_of(SMALL)


def test_a_batch_asks_only_for_what_is_not_listed(service: StoreService, remote: RemoteStore, asked: list[int]) -> None:
    """In one request, and answers in the order of the keys."""
    new = make_blob(5)
    service.bind("alpha").put(new, PutNote())
    readers = remote.get_batch([key(blob) for blob in (SMALL, new, make_blob(6), LARGE)])
    assert asked == [2]
    assert [reader.nbytes if reader else None for reader in readers] == [len(SMALL), len(new), None, len(LARGE)]


def test_another_tenant_does_not_find_it(server: RpcServer, remote: RemoteStore) -> None:
    """The same key is another place."""
    with dialing(server, "beta", lane="shm") as other:
        assert [other.get(key(SMALL)) for _ in range(2)] == [None, None]


@pytest.mark.parametrize("scope", [Scope("tenant"), Scope("model", NAMESPACE.hex()), Scope("source", "book")], ids=lambda s: s.kind)
def test_an_invalidated_chunk_is_a_miss_at_once(service: StoreService, remote: RemoteStore, scope: Scope) -> None:
    """Though its bytes lie where they lay."""
    service.bind("alpha").invalidate(scope)
    assert [remote.get(key(blob)) for blob in (SMALL, LARGE)] == [None, None]


def test_a_deleted_chunk_is_a_miss_at_once(service: StoreService, remote: RemoteStore) -> None:
    """And a new one of the same key is read as it is."""
    service.bind("alpha").delete([key(SMALL)])
    assert remote.get(key(SMALL)) is None
    service.bind("alpha").put(SMALL, PutNote())
    assert read(remote, SMALL) == parts_of(SMALL)


def test_an_evicted_chunk_is_a_miss(service: StoreService, remote: RemoteStore) -> None:
    """Never what lies in its place now."""
    for seed in range(10, 30):
        service.bind("alpha").put(make_blob(seed, part_nbytes=600_000), PutNote(recompute_s=100.0))
    assert read(remote, LARGE) is None


def test_a_chunk_that_is_deleted_while_it_is_copied_is_unavailable(service: StoreService, remote: RemoteStore) -> None:
    """Its memory may hold another one; what was handed out before stays right."""
    reader = remote.get(key(LARGE))
    assert reader is not None
    first = bytes(reader.part(0))
    service.bind("alpha").delete([key(LARGE)])
    with pytest.raises(TierUnavailableError, match="removed while it was read"):
        reader.part(2)
    assert first == parts_of(LARGE)[0]
    reader.close()


def test_a_chunk_that_moved_while_it_is_copied_is_read_to_its_end(service: StoreService, remote: RemoteStore) -> None:
    """It is the same chunk, so a reader sees nothing of it."""
    reader = remote.get(key(LARGE))
    assert reader is not None
    parts = [bytes(reader.part(0))]
    service.bind("alpha").delete([key(LARGE)])
    service.bind("alpha").put(LARGE, PutNote())
    parts += [bytes(reader.part(index)) for index in (1, 2)]
    assert parts == parts_of(LARGE)
    reader.close()


def test_memory_that_is_written_over_while_it_is_copied_is_never_handed_out(service: StoreService, remote: RemoteStore) -> None:
    """For every chunk that takes the place of the one that is read."""
    for seed in range(40, 50):
        reader = remote.get(key(LARGE))
        assert reader is not None
        assert bytes(reader.part(0)) == parts_of(LARGE)[0]
        service.bind("alpha").delete([key(LARGE)])
        service.bind("alpha").put(make_blob(seed, part_nbytes=700_000), PutNote())
        with pytest.raises(KVError):
            reader.part(1)
        reader.close()
        service.bind("alpha").put(LARGE, PutNote())
        assert read(remote, LARGE) == parts_of(LARGE)


def test_reads_without_a_request_are_counted(service: StoreService, remote: RemoteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two were asked for, three more are told with the next one."""
    for _ in range(3):
        read(remote, SMALL)
    monkeypatch.setattr(untold, "MOST_UNTOLD", 0)
    read(remote, SMALL)
    until(lambda: service.store.counters["hits"] == 5)
    assert service.store.counters["tier.memory.hits"] == 5


def test_reads_without_a_request_keep_a_chunk_from_eviction(
    service: StoreService, remote: RemoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy hears of them."""
    monkeypatch.setattr(untold, "MOST_UNTOLD", 0)
    for seed in range(20, 40):
        for _ in range(3):
            assert read(remote, SMALL) == parts_of(SMALL)
        service.bind("alpha").put(make_blob(seed, part_nbytes=600_000), PutNote())
    assert service.bind("alpha").get(key(SMALL)) is not None
    assert service.bind("alpha").get(key(LARGE)) is None


def test_a_store_that_was_closed_is_not_read(service: StoreService, remote: RemoteStore) -> None:
    """Its memory is still mapped here."""
    service.close()
    with pytest.raises(KVError):
        remote.get(key(SMALL), 0.3)


def test_a_store_that_was_killed_is_not_read() -> None:
    """It could not say so, and a new one may know better."""
    with subprocess.Popen(
        [sys.executable, "-c", STORE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], text=True
    ) as store:
        assert store.stdout is not None
        remote = RemoteStore(store.stdout.readline().strip(), TOKENS["alpha"], lane="shm")
        assert [read(remote, SMALL) for _ in range(2)] == [parts_of(SMALL)] * 2
        store.send_signal(signal.SIGKILL)
        store.wait()
        time.sleep(untold.TOLD_S)
        with pytest.raises(KVError):
            remote.get(key(SMALL), 0.3)
        remote.close()


def test_counts_of_chunks_that_nobody_has_change_nothing(service: StoreService, server: RpcServer) -> None:
    """And the connection serves on."""
    with greeted(server, "shm") as frames:
        frames.send(Kind.READ, pack_keys([key(make_blob(9))], [3]), soon())
        frames.send(Kind.VIEW, pack_keys([key(SMALL)]), soon())
        assert frames.expect(Kind.PLACED, soon())
    assert read(service.bind("alpha"), SMALL) == parts_of(SMALL)


def test_reads_are_due_when_there_are_many_or_time_has_passed() -> None:
    """And not before."""
    now_s = [0.0]
    reads = Untold(clock=lambda: now_s[0])
    reads.add(key(SMALL))
    assert not reads.is_due()
    now_s[0] = untold.TOLD_S * 1.01
    assert reads.is_due()
    assert reads.take() == {key(SMALL): 1}
    assert not reads.is_due()
    for _ in range(untold.MOST_UNTOLD):
        reads.add(key(SMALL))
    assert reads.is_due()


PLACE = DirectoryPlace(256, 1, b"s" * 16)
OFFSET, SIZE = 4096, 2 << 20


def window_of(nbytes: int, listed: Listed, place: DirectoryPlace = PLACE, floor: int = 0) -> Window:
    """Return a window on memory whose directory lists the small chunk."""
    memory = bytearray(nbytes)
    memory[:8] = floor.to_bytes(8, "little")
    memory[256 : 256 + 64] = pack_entry(fingerprint(PLACE.salt, key(SMALL)), listed)
    memory[OFFSET : OFFSET + len(SMALL)] = SMALL
    descriptor = os.memfd_create("window")
    os.write(descriptor, memory[:nbytes])
    try:
        return Window(descriptor, place, BufferPool(0), 1 << 20)
    finally:
        os.close(descriptor)


def nothing() -> Landing | None:
    """Ask for nothing."""
    return None


HONEST = Listed(1, OFFSET, len(SMALL), "memory")


@pytest.mark.parametrize(
    ("listed", "floor"),
    [
        (HONEST, 1),
        (HONEST._replace(offset=OFFSET + SIZE), 0),
        (HONEST._replace(offset=2**64 - 1), 0),
        (HONEST._replace(nbytes=2**64 - 1), 0),
        (HONEST._replace(nbytes=(1 << 20) + 1), 0),
    ],
    ids=["invalidated", "behind the end", "far behind it", "endless", "too large for this client"],
)
def test_an_entry_that_can_not_be_is_no_entry(listed: Listed, floor: int) -> None:
    """The chunk is asked for instead."""
    assert window_of(SIZE, listed, floor=floor).read(key(SMALL), nothing) is None
    honest = window_of(SIZE, HONEST).read(key(SMALL), nothing)
    assert honest is not None
    assert honest[1].view == SMALL


@pytest.mark.parametrize(
    "place",
    [DirectoryPlace(256, 0, bytes(16)), DirectoryPlace(SIZE - BUCKET_NBYTES + 1, 1, bytes(16)), DirectoryPlace(2**64 - 1, 1, bytes(16))],
)
def test_a_directory_that_is_not_within_the_memory_is_refused(place: DirectoryPlace) -> None:
    """Before anything is read of it."""
    with pytest.raises(FormatError, match="is not within"):
        window_of(SIZE, HONEST, place)


def test_a_small_chunk_is_this_process_own_copy(remote: RemoteStore, service: StoreService) -> None:
    """Whatever happens to the memory behind the read."""
    reader = remote.get(key(SMALL))
    assert reader is not None
    part = np.frombuffer(reader.part(1), np.uint8)
    service.bind("alpha").delete([key(SMALL)])
    service.bind("alpha").put(make_blob(8, part_nbytes=1000), PutNote())
    assert part.tobytes() == parts_of(SMALL)[1]
    reader.close()
