"""A store and a worker's ledger that look like an hour of traffic, for whoever looks at the console."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context

from kvclient.records import Passage, PassageReport, Report
from kvclient.remote import RemoteStore
from kvstore.core import calling
from kvstore.core.api import PutNote, Scope
from kvstore.server.observe.observatory import Observatory
from kvstore.server.observe.server_source import ServerSource
from kvstore.server.observe.store_source import StoreSource
from kvstore.server.observe.web import WebServer
from kvstore.server.service import StoreService
from kvstore.store.epochs import Epochs
from kvstore.store.memory import MemoryTier
from kvstore.store.tier import TierInfo
from kvstore.store.tiered import TieredStore
from kvworker.serve.ledger import Ledger
from kvworker.serve.worker_source import WorkerSource
from tests.server.chunks import key, make_blob
from tests.server.serving import dialing, serving
from tests.store.faulty import FaultyTier

HOSTILE = "<img src=x onerror=alert(1)>"
REQUEST = "7f3a9c51d2e8b604"
HOUR_S = 3600.0
_NOW_S = 1_800_000_000.0
_WHY = {
    "never_stored": "the store lacks it (never_stored)",
    "evicted": "the store lacks it (evicted)",
    "chosen": "computing 96 rows takes 4.1 ms, loading 1.1 MiB from disk 9.8 ms",
}


class Clock:
    """Seconds that the scene moves."""

    def __init__(self) -> None:
        self.now_s = _NOW_S - HOUR_S

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


@contextmanager
def console(seed: int = 0) -> Iterator[str]:
    """Serve the console of a store and a worker behind an hour of made-up traffic, and yield its address."""
    rng, clock = random.Random(seed), Clock()
    service, ledger = _store(), Ledger(clock)
    with serving(service) as server, dialing(server, lane="tcp") as remote:
        sources = [StoreSource(service, 8), ServerSource(server, service.lane_calls), WorkerSource(ledger, lambda: (0, 0), 8)]
        observatory = Observatory("up", sources, lambda: True, "127.0.0.1:0", lambda _: False, clock)
        for minute in range(60):
            for _ in range(20 + round(15 * math.sin(minute / 9))):
                _ask(rng, service, ledger, clock, minute)
            _use(remote, rng.randrange(30))
            clock.now_s += HOUR_S / 60
            observatory.history.tick()
        service.bind("acme").invalidate(Scope("source", "manual.txt"))
        copy_context().run(_miss, service, "acme")
        web = WebServer("127.0.0.1:0", observatory.routes(), None, lambda: None)
        try:
            yield web.url
        finally:
            web.close()


def _store() -> StoreService:
    """Return a store over memory and what passes for a disk, both too small."""
    disk = FaultyTier(MemoryTier(9 << 20), TierInfo("disk", 9 << 20, is_durable=True))
    return StoreService(TieredStore([MemoryTier(4 << 20), disk]), Epochs(), bytes(32), 1 << 20)


def _use(remote: RemoteStore, n: int) -> None:
    """Put and read a chunk over a lane."""
    blob = make_blob(n)
    remote.put(blob, PutNote())
    remote.lookup([key(blob)])
    if reader := remote.get(key(blob)):
        reader.close()


def _miss(service: StoreService, tenant: str) -> None:
    """Look up chunks that were invalidated, in a request of its own."""
    calling.join_request(REQUEST)
    store = service.bind(tenant)
    store.lookup([key(make_blob(n, part_nbytes=30_000)) for n in range(3)])


def _ask(rng: random.Random, service: StoreService, ledger: Ledger, clock: Clock, minute: int) -> None:
    """Have one tenant read what it has and store what it lacks, and report on it."""
    tenant = rng.choices(["acme", "globex", "initech", HOSTILE], [8, 4, 2, 1])[0]
    store = service.bind(tenant)
    rows = []
    for _ in range(4):
        n = min(int(rng.paretovariate(0.7)), 90)
        blob = make_blob(n, part_nbytes=30_000)
        hit = store.lookup([key(blob)])[0]
        passage = Passage(f"{n:064x}", f"{tenant}-{n}.txt", n, 96, "")
        if hit.reason or (n % 9 == 0 and rng.random() < 0.5):
            reason = hit.reason or "chosen"
            rows.append(PassageReport(passage, "compute", "", "", 0, 0.0, _WHY.get(reason, reason), 96, reason=reason))
            store.put(blob, PutNote(source="manual.txt" if n < 3 else f"{n}.txt", recompute_s=0.01))
        else:
            reader = store.get(key(blob))
            if reader is not None:
                reader.close()
            rows.append(PassageReport(passage, "load", hit.tier or "memory", "raw", len(blob), 0.002, "loading is sooner", 0))
    ledger.record(tenant, _report(rng, tuple(rows)))


def _report(rng: random.Random, rows: tuple[PassageReport, ...]) -> Report:
    loaded = 96 * sum(row.action == "load" for row in rows)
    computed = 96 * len(rows) - loaded + 18
    split = {"lookup": 0.001, "plan": 0.0004, "queue": rng.expovariate(300), "load": 0.00003 * loaded, "prefill": 0.0002 * computed}
    ttft_s = sum(split.values())
    policy = rng.choices(["none", "first_k:k=4"], [5, 1])[0]
    return Report(
        f"{rng.getrandbits(64):016x}",
        rows,
        "min_cost",
        policy,
        split,
        ttft_s,
        ttft_s * rng.uniform(0.8, 1.15),
        loaded,
        computed,
        32,
        "exact",
    )
