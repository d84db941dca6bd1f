"""What a tenant at its limit costs another one: the slowest of a hundred reads alone, beside a neighbour at its limit, beside one without.

Store, neighbour and the tenant that is measured are processes of their own on this machine. The neighbour asks for chunks without a pause;
when it is refused, it waits as long as it is told and asks again. It runs at the lowest priority, as if on another machine: what it costs
the measured tenant is what the *store* does for it. The measured tenant has no limit. Ratios are of one round.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ClassVar

from kvclient.cli.output import Output
from kvclient.cli.progress import progress
from kvclient.remote import RemoteStore
from kvstore.core.api import PutNote
from kvstore.core.errors import QuotaError
from kvstore.core.key import ChunkKey
from kvstore.server.access.auth import open_authenticator
from kvstore.server.config import DiskConfig, MemoryConfig, QuotaConfig, ServerConfig, StoreConfig, TiersConfig
from kvstore.server.opening import open_store, serve_store
from kvworker.bench.benchmark import Asked, show_rows
from kvworker.bench.rows import Bench, Row, cpu_name
from kvworker.bench.transport_lanes import make_chunk
from kvworker.bench.transport_processes import Client, Server, client, server
from kvworker.bench.transport_timing import Budget, Operation

TOKENS = {"measured": "token-of-the-measured", "neighbour": "token-of-the-neighbour"}


@dataclass(frozen=True)
class QuotasBench:
    """`larder bench quotas`.

    Parameters
    ----------
    sizes : tuple of int
        Requests a second that the neighbour may make.
    nbytes : int
        Bytes of a chunk.
    rounds : int
        How often all take turns.
    budget : Budget
        How long one turn lasts.
    """

    name: ClassVar[str] = "quotas"
    sizes: tuple[int, ...] = (10, 50, 200)
    nbytes: int = 1 << 20
    rounds: int = 4
    budget: Budget = field(default_factory=lambda: Budget(warm_ups=50, min_operations=1000, min_s=1.0, max_s=1.8))

    @classmethod
    def quick(cls) -> QuotasBench:
        """Return the benchmark at a size that ends within a minute on two cores."""
        return cls((50,), rounds=2, budget=Budget(warm_ups=10, min_operations=300, min_s=0.5, max_s=1.0))

    def run(self, asked: Asked) -> Iterator[Row]:
        """Yield rows, limit by limit."""
        bench = Bench(self.name, "requests/s", cpu_name(), "uint8")
        with progress("reading", len(self.sizes) * self.rounds) as advance:
            for limit in self.sizes:
                turns = []
                with crowd(limit, self.nbytes) as readers:
                    for _ in range(self.rounds):
                        turns.append({variant: p99_s(readers, variant, self.budget) for variant in VARIANTS})
                        advance(1)
                yield from _rows(bench, limit, turns)

    def show(self, rows: Sequence[Row], output: Output) -> None:
        """Print one line per row."""
        show_rows(rows, output)


Readers = Mapping[tuple[bool, str], Client]
"""Who reads, by whether its store has quotas, and by tenant."""

VARIANTS = {"alone": (True, False), "beside one at its limit": (True, True), "beside one without a limit": (False, True)}
"""Whether the store has quotas, and whether the neighbour reads."""


def p99_s(readers: Readers, variant: str, budget: Budget) -> float:
    """Return the 99th percentile of the measured tenant's reads."""
    has_quotas, is_beside = VARIANTS[variant]
    with readers[has_quotas, "neighbour"].repeating("get") if is_beside else nullcontext():
        return readers[has_quotas, "measured"].measure("get", budget).p99_s


@contextmanager
def crowd(limit: int, nbytes: int) -> Iterator[Readers]:
    """Start two stores, one with quotas, and two tenants for each of them."""
    with tempfile.TemporaryDirectory(prefix="larder-bench-") as folder, ExitStack() as stack:
        readers: dict[tuple[bool, str], Client] = {}
        for has_quotas in (True, False):
            store = stack.enter_context(server(_serve, str(Path(folder) / str(has_quotas)), limit if has_quotas else 0))
            for tenant in TOKENS:
                readers[has_quotas, tenant] = stack.enter_context(client(tenant, _open_reader, store, tenant))
        for reader in readers.values():
            reader.wait()
            reader.prepare(nbytes)
        yield readers


def _serve(pipe: Connection, folder: str, limit: int) -> None:
    """Serve a store until the pipe ends."""
    tokens = Path(folder) / "tokens"
    tokens.parent.mkdir(mode=0o700)
    tokens.write_text("".join(f"{tenant} {token}\n" for tenant, token in TOKENS.items()))
    tokens.chmod(0o600)
    config = StoreConfig(
        data_dir=folder,
        server=ServerConfig(address="127.0.0.1:0", drain_s=1.0),
        tiers=TiersConfig(MemoryConfig(256 << 20), DiskConfig(0)),
        quotas=QuotaConfig(requests_per_s=limit, burst=1, exempt="measured"),
    )
    service = open_store(config)
    running = serve_store(config, service, open_authenticator(config.tokens_path, config.auth))
    pipe.send(running.address)
    with suppress(EOFError):
        pipe.recv()
    running.drain()
    service.close()


class _Reader:
    """Implements `Subject`: one tenant that reads one chunk by the tcp lane."""

    def __init__(self, store: Server, tenant: str) -> None:
        self._seed = list(TOKENS).index(tenant)
        self._store = RemoteStore(store.address, TOKENS[tenant], lane="tcp")

    def prepare(self, nbytes: int, n_chunks: int) -> Mapping[str, Operation]:
        """Store the chunk."""
        chunk = make_chunk(nbytes, (self._seed, 0))
        self._store.put(chunk.blob, PutNote())
        return {"get": Operation(partial(_get, self._store, chunk.key))}

    def close(self) -> None:
        """Close the connections."""
        self._store.close()


def _get(store: RemoteStore, key: ChunkKey) -> None:
    """Read a chunk whole; who is refused more often than a client tries again goes on."""
    with suppress(QuotaError):
        reader = store.get(key)
        assert reader is not None
        for index in range(len(reader.manifest.parts)):
            reader.part(index)
        reader.close()


@contextmanager
def _open_reader(store: Server, tenant: str) -> Iterator[_Reader]:
    if tenant == "neighbour":
        os.nice(19)
    reader = _Reader(store, tenant)
    try:
        yield reader
    finally:
        reader.close()


def _rows(bench: Bench, limit: int, turns: Sequence[Mapping[str, float]]) -> Iterator[Row]:
    """Yield each variant's p99, and its ratio to being alone in the same round."""
    for variant in VARIANTS:
        yield bench.row(variant, "p99", "ms", limit, [1000 * turn[variant] for turn in turns])
        if variant != "alone":
            yield bench.row(f"{variant} / alone", "p99", "ratio", limit, [turn[variant] / turn["alone"] for turn in turns])
