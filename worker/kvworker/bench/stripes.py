"""What several TCP connections gain where one carries no more than its window in each round trip, and cost where it does."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import grpc

from kvclient.channel import bearer
from kvclient.cli.output import Output
from kvclient.cli.progress import progress
from kvclient.remote import RemoteStore
from kvproto.v1 import store_pb2 as pb
from kvproto.v1.store_pb2_grpc import StoreServiceStub
from kvstore.core.allocator import keep_large_blocks
from kvworker.bench.benchmark import Asked, show_rows
from kvworker.bench.far_link import FarLink, serve_far
from kvworker.bench.rows import Bench, Row, cpu_name
from kvworker.bench.transport_lanes import get_chunk, make_chunk, put_chunk, put_operation
from kvworker.bench.transport_processes import Client, Server, client, running_store, server
from kvworker.bench.transport_timing import Budget, Operation

MIB = 1 << 20


@dataclass(frozen=True)
class StripesBench:
    """`larder bench stripes`: one client process, one store process, and a link between them that is pretended by a third.

    Parameters
    ----------
    sizes : tuple of int
        Bytes of a chunk.
    stripes : tuple of int
        Connections that carry it.
    rounds : int
        How often all take turns.
    link : FarLink
        What lies between client and store; beside it everything is measured on loopback.
    """

    name: ClassVar[str] = "stripes"
    sizes: tuple[int, ...] = (8 * MIB, 32 * MIB)
    stripes: tuple[int, ...] = (1, 2, 4)
    rounds: int = 3
    link: FarLink = field(default_factory=FarLink)
    budget: Budget = field(default_factory=lambda: Budget(warm_ups=2, min_operations=5, min_s=0.2, max_s=0.5))

    @classmethod
    def quick(cls) -> StripesBench:
        """Return the benchmark at a size that ends within a minute on two cores."""
        return cls(rounds=2)

    def run(self, asked: Asked) -> Iterator[Row]:
        """Yield MB/s and times over those of one connection, size by size."""
        bench = Bench(self.name, "bytes", cpu_name(), "uint8")
        with _lab(self, 4 * max(self.sizes)) as clients, progress("moving", len(self.sizes) * self.rounds) as advance:
            for size in self.sizes:
                rounds = []
                for each in clients.values():
                    each.prepare(size)
                for _ in range(self.rounds):
                    rounds.append({(n, way): c.measure(way, self.budget).p50_s for way in ("get", "put") for n, c in clients.items()})
                    advance(1)
                yield from rows_of(bench, size, rounds)

    def show(self, rows: Sequence[Row], output: Output) -> None:
        """Print one line per row."""
        show_rows(rows, output)
        far = f"{1000 * self.link.delay_s:g} ms one way, {self.link.window_nbytes} B of each connection under way"
        output.text(f"far: {far}, so at most {self.link.bytes_per_s / 1e6:.0f} MB/s by one.")


Place = tuple[str, int]
"""Near or far, and how many connections."""


def rows_of(bench: Bench, size: int, rounds: Sequence[Mapping[tuple[Place, str], float]]) -> Iterator[Row]:
    """Return the rows of one size from the seconds of each round; a ratio never crosses rounds."""
    for (place, count), way in rounds[0]:
        variant, at = f"{place} {way}, {count} connections", ((place, count), way)
        yield bench.row(variant, "mb_per_s", "MB/s", size, [size / seconds[at] / 1e6 for seconds in rounds])
        if count > 1:
            yield bench.row(variant, "over_one", "ratio", size, [seconds[(place, 1), way] / seconds[at] for seconds in rounds])


class _Afar(RemoteStore):
    """A client that finds the TCP lane behind a link."""

    def __init__(self, store: Server, port: int, stripes: int) -> None:
        self._port = port
        super().__init__(store.address, store.token, lane="tcp", stripes=stripes)

    def _open_lane(self, deadline: float) -> pb.OpenLaneResponse:
        answer = super()._open_lane(deadline)
        answer.tcp_port = self._port or answer.tcp_port
        return answer


class _Subject:
    """Implements `Subject`: one client."""

    def __init__(self, store: Server, port: int, stripes: int) -> None:
        self._store = _Afar(store, port, stripes)
        self._seed = (port, stripes)

    def prepare(self, nbytes: int, n_chunks: int) -> Mapping[str, Operation]:
        """Store the chunk that is read, and measure the put of another."""
        kept, fresh = make_chunk(nbytes, (*self._seed, 0)), make_chunk(nbytes, (*self._seed, 1))
        put_chunk(self._store, kept)
        return {"get": Operation(partial(get_chunk, self._store, kept.key)), "put": put_operation(self._store, fresh)}


@contextmanager
def _lab(bench: StripesBench, memory_nbytes: int) -> Iterator[dict[Place, Client]]:
    """Start a store, a link to it, and a client for each number of connections and each side of the link."""
    with tempfile.TemporaryDirectory(prefix="larder-bench-") as folder, ExitStack() as stack:
        n_clients = 2 * len(bench.stripes)
        store = stack.enter_context(running_store(Path(folder) / "store", n_clients * memory_nbytes))
        link = stack.enter_context(server(serve_far, _tcp_port(store), bench.link))
        ports = {"near": 0, "far": int(link.address.rpartition(":")[2])}
        clients = {
            (place, count): stack.enter_context(client(f"{place} {count}", _open, store, port, count))
            for place, port in ports.items()
            for count in bench.stripes
        }
        for each in clients.values():
            each.wait()
        yield clients


@contextmanager
def _open(store: Server, port: int, stripes: int) -> Iterator[_Subject]:
    keep_large_blocks()
    yield _Subject(store, port, stripes)


def _tcp_port(store: Server) -> int:
    """Ask a store for the port of its TCP lane."""
    with grpc.insecure_channel(store.address) as channel:
        stub = StoreServiceStub(channel)  # type: ignore[no-untyped-call]
        return int(stub.OpenLane(pb.OpenLaneRequest(), metadata=bearer(store.token), timeout=10.0).tcp_port)
