"""A store whose lanes go through a proxy that hurts them, and what a client may see then."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from kvclient.lanes.choice import LaneName
from kvclient.remote import RemoteStore
from kvclient.retry import Retry
from kvproto.v1 import store_pb2 as pb
from kvstore.core.api import BlobReader, PutNote
from kvstore.core.errors import KVError
from kvstore.core.pool import BufferPool
from kvstore.server.access.auth import Identity
from kvstore.server.grpc_server import RpcServer
from kvstore.server.service import BoundStore, StoreService
from tests.faults.proxy import Fault, FaultProxy, Way, draw_fault
from tests.lanes.raw import doors_of
from tests.server.chunks import key, make_blob
from tests.server.serving import TOKENS
from tests.server.ways import parts_of, read_parts

DEADLINE_S = 0.5
SETTLE_S = 12.0  # the server waits 10 s in the middle of a message
PART_NBYTES = (300, 40_000, 700_000)
SOURCE = "a document that was read to its end"
PAUSE_S = 0.01


@cache
def chunk(seed: int) -> bytes:
    """Return a chunk of one of three sizes: within one message, through a ring, and in several pieces; `STRIPED` is larger than all."""
    if seed == STRIPED:
        return bytes(make_blob(seed, part_nbytes=3 << 20))
    return bytes(make_blob(seed, part_nbytes=PART_NBYTES[seed % len(PART_NBYTES)]))


STORED = tuple(range(6))
ABSENT = 90
PUT = (100, 101, 102)
STRIPED = 200
N_STRIPES = 2


class Detour(RemoteStore):
    """A client that finds another door than the one it was told of."""

    def __init__(self, address: str, path: str, port: int, lane: LaneName, retry: Retry, pool: BufferPool) -> None:
        self._path, self._port = path, port
        super().__init__(address, TOKENS["alpha"], timeout_s=DEADLINE_S, retry=retry, lane=lane, pool=pool, stripes=N_STRIPES)

    def _open_lane(self, deadline: float) -> pb.OpenLaneResponse:
        answer = super()._open_lane(deadline)
        answer.shm_path, answer.tcp_port = self._path, self._port
        return answer


class LaneLab:
    """One served store, one lane of it, and a proxy per run."""

    def __init__(self, service: StoreService, server: RpcServer, lane: LaneName, folder: Path) -> None:
        self.service, self.server, self.lane = service, server, lane
        self.api: BoundStore = service.bind("alpha")
        self.doors = doors_of(server)
        self.pool = BufferPool(32 << 20)
        self._folder = folder
        self._n_proxies = 0

    def fill(self, name: str) -> None:
        """Put what an action may read."""
        for seed in (STRIPED,) if name == "striped" else STORED:
            self.api.put(chunk(seed), PutNote(source=SOURCE))

    def empty(self) -> None:
        """Delete everything; every byte that anybody held is free again then, on both sides, without a garbage collection."""
        self.api.delete([key(chunk(seed)) for seed in (*STORED, *PUT, STRIPED)])
        self._wait(lambda: not (self._used_bytes() or self.pool.lent_nbytes))
        assert (self._used_bytes(), self.pool.lent_nbytes) == (0, 0)

    def _used_bytes(self) -> int:
        return self.api.stats().tiers[0].used_bytes

    @contextmanager
    def client(self, fault: Fault | None, retry: Retry) -> Iterator[tuple[RemoteStore, FaultProxy]]:
        """Connect by way of a proxy."""
        proxy = self._proxy(fault)
        address, path = self.server.address, ""
        if self.lane == "shm":
            path = str(self._path())
        elif self.lane == "grpc":
            address = f"127.0.0.1:{proxy.port}"
        remote = Detour(address, path, proxy.port if self.lane == "tcp" else 0, self.lane, retry, self.pool)
        try:
            yield remote, proxy
        finally:
            remote.close()
            proxy.close()
            if path:
                Path(path).unlink()

    def _path(self) -> Path:
        return self._folder / f"proxy-{self._n_proxies}"

    def _proxy(self, fault: Fault | None) -> FaultProxy:
        answer = self.doors.open_lane(Identity("alpha"))
        self._n_proxies += 1
        if self.lane == "shm":
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(str(self._path()))
        else:
            listening = socket.create_server(("127.0.0.1", 0))
        listening.listen()
        port = answer.tcp_port if self.lane == "tcp" else self.server.port
        return FaultProxy(listening, lambda: self._dial(answer.shm_path, port), fault)

    def _dial(self, path: str, port: int) -> socket.socket:
        if self.lane != "shm":
            return socket.create_connection(("127.0.0.1", port))
        dialed = socket.socket(socket.AF_UNIX)
        dialed.connect(path)
        return dialed

    def settle(self) -> None:
        """Wait until the server holds nothing for anybody."""
        self._wait(lambda: not (self.server.budget.lent_bytes or self.doors.n_connections))
        assert (self.server.budget.lent_bytes, self.doors.n_connections) == (0, 0)

    def _wait(self, is_so: Callable[[], bool]) -> None:
        ends = time.monotonic() + SETTLE_S
        while not is_so() and time.monotonic() < ends:
            time.sleep(0.001)


Action = Callable[[RemoteStore, int], str]


def get_one(remote: RemoteStore, number: int) -> str:
    """Read a chunk in one of two orders."""
    order = (0, 1, 2) if number % 2 else (2, 0, 1)
    return _compare(remote.get(key(chunk(STORED[number % 6]))), STORED[number % 6], order)


def get_batch(remote: RemoteStore, number: int) -> str:
    """Read three chunks and one that is not there."""
    seeds = [STORED[(number + step) % 6] for step in range(3)]
    seeds.insert(number % 4, ABSENT)
    readers = remote.get_batch([key(chunk(seed)) for seed in seeds])
    try:
        outcomes = [_compare(reader, seed, (0, 1, 2)) for reader, seed in zip(readers, seeds, strict=True)]
    finally:
        for reader in readers:
            if reader is not None:
                reader.close()
    assert outcomes[number % 4] == "miss"
    return "right" if outcomes.count("right") == 3 else "miss"


def view_one(remote: RemoteStore, number: int) -> str:
    """Read a chunk in place."""
    return _compare(remote.view(key(chunk(STORED[number % 6]))), STORED[number % 6], (0, 1, 2))


def get_striped(remote: RemoteStore, number: int) -> str:
    """Read a chunk that is large enough for several connections, which the second time it is known to be."""
    outcomes = [_compare(remote.get(key(chunk(STRIPED))), STRIPED, (0, 1, 2)) for _ in range(2)]
    return outcomes[-1]


def put_one(remote: RemoteStore, number: int) -> str:
    """Put a chunk."""
    return _put(remote, chunk(PUT[number % 3]))


def put_striped(remote: RemoteStore, number: int) -> str:
    """Put a chunk that is large enough for several connections."""
    return _put(remote, chunk(STRIPED))


def _put(remote: RemoteStore, blob: bytes) -> str:
    receipt = remote.put(blob, PutNote(source=SOURCE, recompute_s=1.5))
    assert (receipt.key, receipt.nbytes) == (key(blob), len(blob))
    return "right" if receipt.stored else "again"


ACTIONS: dict[str, Action] = {
    "get": get_one, "batch": get_batch, "view": view_one, "put": put_one, "striped": get_striped, "striped put": put_striped,
}  # fmt: skip

ONLY = {"view": "shm", "striped": "tcp", "striped put": "tcp"}


def _compare(reader: BlobReader | None, seed: int, order: Sequence[int]) -> str:
    """Read a chunk; what is there must be right."""
    parts = read_parts(reader, order)
    assert parts is None or parts == parts_of(chunk(seed)), f"wrong bytes of chunk {seed}"
    return "miss" if parts is None else "right"


def attempt(action: Action, remote: RemoteStore, number: int) -> tuple[str, float]:
    """Return what came of an action and how long it took; an error that is not one of ours is raised."""
    start_s = time.monotonic()
    try:
        outcome = action(remote, number)
    except KVError as error:
        outcome = type(error).__name__
    return outcome, time.monotonic() - start_s


def check_put(lab: LaneLab, blob: bytes, outcome: str) -> None:
    """What a put left is all of the chunk, under its own source, or nothing; and it is there when the client was told so."""
    held = read_parts(lab.api.get(key(blob)))
    assert held == parts_of(blob) or (held is None and outcome != "right")
    told = [(entry.source, entry.nbytes) for entry in lab.api.entries() if entry.key == key(blob)]
    assert told == ([(SOURCE, len(blob))] if held else [])


def run_once(lab: LaneLab, seed: int, passed: dict[str, dict[Way, int]]) -> tuple[str, str, float, Fault]:
    """Do one seeded action under one seeded fault; return the action's name, what came of it, how long it took, and the fault."""
    rng = random.Random(seed)
    name = rng.choice(list(passed))
    number, retry = rng.randrange(12), Retry(rng.choice((1, 3)), first_pause_s=PAUSE_S, seed=seed)
    fault = draw_fault(rng, passed[name])
    lab.fill(name)
    with lab.client(fault, retry) as (remote, _):
        outcome, took_s = attempt(ACTIONS[name], remote, number)
    lab.settle()
    if name in ("put", "striped put"):
        check_put(lab, chunk(PUT[number % 3] if name == "put" else STRIPED), outcome)
    lab.empty()
    return name, outcome, took_s, fault


def measure(lab: LaneLab) -> dict[str, dict[Way, int]]:
    """Return how many bytes each action sends each way when nothing is hurt."""
    passed = {}
    for name in (name for name in ACTIONS if ONLY.get(name, lab.lane) == lab.lane):
        lab.fill(name)
        with lab.client(None, Retry(1)) as (remote, proxy):
            outcome, _ = attempt(ACTIONS[name], remote, 2)
            assert outcome == "right"
            passed[name] = {way: proxy.passed_nbytes(way) for way in Way}
        lab.settle()
        lab.empty()
    return passed
