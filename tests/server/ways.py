"""Every way to reach a store: in its own process, as one of a cluster, and by each lane."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import get_args

from kvclient.cluster.members import Members
from kvclient.cluster.store import ClusterStore
from kvclient.lanes.choice import LaneName
from kvstore.core.api import BlobReader, StoreAPI
from kvstore.core.blob import parse_header
from kvstore.server.service import StoreService
from tests.server.chunks import key
from tests.server.serving import TOKENS, dialing, serving

LANES: tuple[LaneName, ...] = tuple(name for name in get_args(LaneName) if name != "auto")
WAYS = ("embedded", "cluster", *LANES)


@contextmanager
def reaching(service: StoreService, way: str) -> Iterator[dict[str, StoreAPI]]:
    """Yield every tenant's view of a store, over one of `WAYS`."""
    if way == "embedded":
        yield {tenant: service.bind(tenant) for tenant in TOKENS}
        return
    if way == "cluster":
        one = Members(("127.0.0.1:1",))
        yield {tenant: ClusterStore(one, lambda _, tenant=tenant: service.bind(tenant)) for tenant in TOKENS}
        return
    lane = next(name for name in LANES if name == way)
    with ExitStack() as stack:
        server = stack.enter_context(serving(service))
        yield {tenant: stack.enter_context(dialing(server, tenant, lane=lane)) for tenant in TOKENS}


def parts_of(blob: bytes | bytearray) -> list[bytes]:
    """Return the parts of a chunk as they were made."""
    return [bytes(blob[p.offset : p.offset + p.nbytes]) for p in parse_header(blob).manifest.parts]


def read(api: StoreAPI, blob: bytes | bytearray) -> list[bytes] | None:
    """Return the parts of a chunk as the store hands them out, None for a miss."""
    return read_parts(api.get(key(blob)))


def read_parts(reader: BlobReader | None, order: Sequence[int] | None = None) -> list[bytes] | None:
    """Read a chunk's parts, in the order of their indexes or another, and close it; they are returned by index."""
    if reader is None:
        return None
    try:
        parts = {index: bytes(reader.part(index)) for index in order or range(len(reader.manifest.parts))}
    finally:
        reader.close()
    return [parts[index] for index in sorted(parts)]
