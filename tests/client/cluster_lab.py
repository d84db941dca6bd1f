"""Several stores in this process, each with a switch that makes it go away, and clients of all of them on one fake clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from kvclient.cluster.members import Members
from kvclient.cluster.roster import Pace
from kvclient.cluster.store import ClusterStore
from kvclient.cluster.together import Together
from kvclient.retry import Retry
from kvstore.core.api import BlobReader, Entry, Explanation, Hit, PutNote, PutReceipt, Scope, Status, StoreStats
from kvstore.core.blob import Buffer
from kvstore.core.epochs import EpochAnswer, EpochBook
from kvstore.core.errors import KVError, TierUnavailableError
from kvstore.core.key import ChunkKey
from kvstore.server.service import StoreService
from tests.server.chunks import key, make_blob, make_service

BLOBS = [make_blob(seed) for seed in range(48)]
KEYS = [key(blob) for blob in BLOBS]
TENANT = Scope("tenant")
PACE = Pace(fresh_s=5.0, first_pause_s=1.0, longest_pause_s=4.0, resolve_s=5.0)


@dataclass
class Clock:
    """Seconds that pass when a test says so."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Inline(Together):
    """Does at once what would be done in the background."""

    def behind(self, call: Callable[[], None]) -> bool:
        call()
        return True


@dataclass
class LabServer:
    """One tenant's view of one store; with `error` set every call raises it. Implements `kvclient.cluster.member.Server`."""

    service: StoreService
    tenant: str
    state: StoreState

    def _call(self, name: str) -> StoreService:
        self.state.calls.append(name)
        if (error := self.state.errors.get(name, self.state.error)) is not None:
            raise error
        return self.service

    def lookup(self, keys: Sequence[ChunkKey], lease_s: float = 0.0, timeout_s: float | None = None) -> list[Hit]:
        return self._call("lookup").bind(self.tenant).lookup(keys, lease_s, timeout_s)

    def get(self, key: ChunkKey, timeout_s: float | None = None) -> BlobReader | None:
        return self._call("get").bind(self.tenant).get(key, timeout_s)

    def get_batch(self, keys: Sequence[ChunkKey], timeout_s: float | None = None) -> list[BlobReader | None]:
        return self._call("get_batch").bind(self.tenant).get_batch(keys, timeout_s)

    def put(self, blob: Buffer, note: PutNote) -> PutReceipt:
        return self._call("put").bind(self.tenant).put(blob, note)

    def delete(self, keys: Sequence[ChunkKey]) -> int:
        return self._call("delete").bind(self.tenant).delete(keys)

    def invalidate(self, scope: Scope) -> int:
        return self._call("invalidate").bind(self.tenant).invalidate(scope)

    def agree(self, at_least: EpochBook, known_digest: bytes = b"", timeout_s: float | None = None) -> EpochAnswer:
        return self._call("agree").bind(self.tenant).agree(at_least, known_digest)

    def entries(self, limit: int = 1000) -> Iterator[Entry]:
        return self._call("entries").bind(self.tenant).entries(limit)

    def stats(self) -> StoreStats:
        return self._call("stats").bind(self.tenant).stats()

    def explain(self, key: ChunkKey) -> Explanation:
        return self._call("explain").bind(self.tenant).explain(key)

    def close(self) -> None:
        self.state.n_closed += 1


@dataclass
class StoreState:
    """A store behind an address: what it was asked, and what it answers with instead."""

    service: StoreService
    error: KVError | None = None
    errors: dict[str, KVError] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    n_closed: int = 0

    def holds(self, key: ChunkKey) -> bool:
        """Tell whether the store itself has a chunk of tenant alpha."""
        return self.service.bind("alpha").lookup([key])[0].status is Status.READY


class ClusterLab:
    """Stores by address, "a:1" first, that come and go; a context manager that closes all of them."""

    def __init__(self, n_stores: int = 3, capacity_bytes: int = 64 << 20) -> None:
        self.clock = Clock()
        self.stores: dict[str, StoreState] = {}
        self._capacity_bytes, self._clients = capacity_bytes, list[ClusterStore]()
        self.resolved: list[str] | KVError = []
        for i in range(n_stores):
            self.add(f"{'abcdefgh'[i]}:1")

    def add(self, address: str) -> StoreState:
        """Start one more store, empty."""
        self.stores[address] = StoreState(make_service(self._capacity_bytes))
        return self.stores[address]

    def away(self, address: str) -> StoreState:
        """Make a store refuse every call as one that is gone."""
        self.stores[address].error = TierUnavailableError(f"{address} is gone")
        return self.stores[address]

    def back(self, address: str) -> None:
        """Let a store answer again, and pass the longest pause before it is tried."""
        self.stores[address].error = None
        self.clock.now_s += PACE.longest_pause_s

    def client(self, members: Members | None = None, replicas: int = 1, tenant: str = "alpha") -> ClusterStore:
        """Return a client of all stores there are now, or of those that a name stands for; it never pauses."""
        who = members or Members(tuple(self.stores))
        made = ClusterStore(
            who,
            lambda address: LabServer(self.stores[address].service, tenant, self.stores[address]),
            replicas,
            timeout_s=10.0,
            retry=Retry(sleep=lambda _: None),
            pace=PACE,
            clock=self.clock,
            resolve=self._resolve,
            together=Inline(),
        )
        self._clients.append(made)
        return made

    def holders(self, key: ChunkKey) -> list[str]:
        """Return the addresses of the stores that have a chunk."""
        return [address for address, store in self.stores.items() if store.holds(key)]

    def forget_calls(self) -> None:
        """Count calls from now on."""
        for store in self.stores.values():
            store.calls.clear()

    def _resolve(self, name: str, port: int) -> Sequence[str]:
        if isinstance(self.resolved, KVError):
            raise self.resolved
        return self.resolved

    def __enter__(self) -> ClusterLab:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()
        for store in self.stores.values():
            store.service.close()


def fill(api: ClusterStore, blobs: Sequence[bytearray] = BLOBS, source: str = "") -> None:
    """Put chunks."""
    for blob in blobs:
        api.put(blob, PutNote(source=source))


def ready(api: ClusterStore, keys: Sequence[ChunkKey] = KEYS) -> list[bool]:
    """Return which chunks a lookup finds."""
    return [hit.status is Status.READY for hit in api.lookup(keys)]


def owned(lab: ClusterLab, address: str) -> list[ChunkKey]:
    """Return the keys whose chunk lies on a store and nowhere else."""
    return [k for k in KEYS if lab.holders(k) == [address]]
