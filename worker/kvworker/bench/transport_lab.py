"""The servers and clients of one run of the transport benchmark, and the order in which they take turns."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kvworker.bench.transport_lanes import open_lanes
from kvworker.bench.transport_processes import Client, client, redis_binary, running_redis, running_store, server
from kvworker.bench.transport_references import open_references, serve_plain_grpc, serve_socket
from kvworker.bench.transport_rows import BATCH, LANES, SINGLES, UNDER_BULK, Round
from kvworker.bench.transport_tiers import open_tiers
from kvworker.bench.transport_timing import Budget, Timing

SMALL_NBYTES = 4 << 10  # the size at which latency is judged
_MARGIN_NBYTES = 64 << 20
# Ours stands right behind what it is compared with.
_ORDER = (
    "memcpy", "shm.get", "shm.put", "shm.view", "socket.get", "tcp.get", "socket.put", "tcp.put", "naive_protobuf.get", "grpc.get",
    "naive_protobuf.put", "grpc.put", "redis_py.get", "redis.get", "redis_py.put", "redis.put", "disk.get", "disk.put",
)  # fmt: skip
_BATCHES = (SINGLES, BATCH, f"{BATCH}.tcp", f"{BATCH}.grpc")


class Lab:
    """Measures rounds with clients that wait for their turn; `bulk` is the client that streams large chunks, `bulk_nbytes` their size."""

    def __init__(self, clients: Sequence[Client], bulk: Client | None, bulk_nbytes: int) -> None:
        self._clients, self._bulk = clients, bulk
        if bulk:
            bulk.prepare(bulk_nbytes)

    def rounds(self, nbytes: int, n_rounds: int, budget: Budget, advance: Callable[[int], None]) -> list[Round]:
        """Measure everything at one size, in rounds."""
        owners = {variant: each for each in self._clients for variant in each.prepare(nbytes)}
        order = [variant for variant in _ORDER if variant in owners]
        if nbytes == SMALL_NBYTES:
            order.insert(order.index("grpc.get"), "grpc.empty")
        found: list[Round] = []
        for _ in range(n_rounds):
            measured = {variant: owners[variant].measure(variant, budget) for variant in order}
            if nbytes == SMALL_NBYTES and self._bulk:
                measured |= self._under_bulk(owners, self._bulk, budget)
            found.append(measured)
            advance(1)
        return found

    def lanes(self, nbytes: int, budget: Budget) -> Round:
        """Measure our lanes alone at one size, once."""
        lanes = self._lanes()
        return {variant: lanes.measure(variant, budget) for variant in lanes.prepare(nbytes)}

    def batches(self, n_chunks: int, nbytes: int, n_rounds: int, budget: Budget, advance: Callable[[int], None]) -> list[Round]:
        """Measure many small chunks in one call against one call for each."""
        lanes = self._lanes()
        lanes.prepare(nbytes, n_chunks)
        found: list[Round] = []
        for _ in range(n_rounds):
            found.append({variant: lanes.measure(variant, budget) for variant in _BATCHES})
            advance(1)
        return found

    def _lanes(self) -> Client:
        (lanes,) = [each for each in self._clients if each.name == "lanes"]
        return lanes

    def _under_bulk(self, owners: dict[str, Client], bulk: Client, budget: Budget) -> dict[str, Timing]:
        """Measure the small get of each lane while another process reads large chunks on the same one."""
        measured = {}
        for variant in (f"{lane}.get" for lane in LANES):
            with bulk.repeating(variant):
                measured[variant + UNDER_BULK] = owners[variant].measure(variant, budget)
        return measured


@contextmanager
def open_lab(sizes: Sequence[int], batch_nbytes: int, bulk_nbytes: int) -> Iterator[Lab]:
    """Start servers, then clients; all of them end with the block."""
    capacity_nbytes = 4 * max(sizes) + 2 * bulk_nbytes + 2 * batch_nbytes + _MARGIN_NBYTES
    with tempfile.TemporaryDirectory(prefix="larder-bench-") as name, ExitStack() as stack:
        folder, start = Path(name), stack.enter_context
        store = start(running_store(folder / "store", capacity_nbytes))
        bare, plain = start(server(serve_socket)), start(server(serve_plain_grpc))
        binary = redis_binary() if importlib.util.find_spec("hiredis") else None
        redis = start(running_redis(binary, folder)) if binary else None
        if redis is None:
            print("redis is not measured: redis-server or hiredis is missing; pip install 'kv-larder[dev]'", file=sys.stderr)
        clients = [
            start(client("references", open_references, bare, plain, redis)),
            start(client("lanes", open_lanes, store, 0)),
            start(client("tiers", open_tiers, folder, capacity_nbytes, redis)),
        ]
        bulk = start(client("bulk", open_lanes, store, 1)) if SMALL_NBYTES in sizes else None
        for each in (*clients, *([bulk] if bulk else [])):
            each.wait()
        yield Lab(clients, bulk, bulk_nbytes)
