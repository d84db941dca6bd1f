# Written by client/generate_sync.py from kvclient/_async/stores.py; change that file and run it again.
"""What a RAG backend's client asks of stores itself: chunks for an engine of its own, and invalidations."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import grpc

from kvclient._sync.calls import Calls
from kvclient._sync.fetch import Fetched, collect_chunk
from kvclient._sync.services import Services
from kvclient.channel import Metadata
from kvclient.cluster.member import GONE
from kvclient.cluster.members import Members
from kvclient.lanes.frames import pack_keys
from kvclient.lanes.grpc_lane import GET
from kvclient.retry import Deadline, Retry
from kvclient.stored import KeptArtifacts, StoredArtifact, stored_artifact
from kvclient.turns import Turns
from kvclient.wire import MAX_KEYS, hit_from_wire, key_to_wire, scope_to_wire
from kvproto.v1 import store_pb2
from kvstore.core.api import Scope, Status
from kvstore.core.errors import KVError, TierUnavailableError
from kvstore.core.key import ChunkKey

_ANYWHERE = Turns(("",))  # a store has no stand-in: what it does not answer is tried again there


class Stores:
    """Asks the stores that a worker names: one, several, or all that a name stands for."""

    def __init__(self, services: Services, metadata: Metadata, timeout_s: float, retry: Retry) -> None:
        self._services, self._calls = services, Calls(metadata, timeout_s, retry, _ANYWHERE)

    def addresses(self, text: str) -> tuple[str, ...]:
        """Return the addresses of the stores of now; raises ConfigError or TierUnavailableError."""
        members = Members.parse(text)
        addresses = members.listed or members.addresses()
        self._services.expect(addresses, members.name)
        return addresses

    def homes(self, text: str, keys: Sequence[ChunkKey], deadline: Deadline) -> list[str]:
        """Return the store that has each chunk, or any for one that none has; one store is not asked, and one that is away has nothing."""
        addresses = self.addresses(text)
        homes = [addresses[0]] * len(keys)
        if len(addresses) == 1:
            return homes
        for address in addresses:
            for at in range(0, len(keys), MAX_KEYS):
                for i, is_there in enumerate(self._has(address, keys[at : at + MAX_KEYS], deadline)):
                    homes[at + i] = address if is_there else homes[at + i]
        return homes

    def _has(self, address: str, keys: Sequence[ChunkKey], deadline: Deadline) -> list[bool]:
        """Return which chunks a store has; nothing where it does not answer."""
        request = store_pb2.LookupRequest(keys=map(key_to_wire, keys))
        try:
            response = self._calls.one(lambda _: self._services.store(address).Lookup, request, deadline.left_s())
        except GONE:
            return []
        return [hit_from_wire(hit).status is Status.READY for hit in response.hits][: len(keys)]

    def fetch(self, address: str, key: ChunkKey, deadline: Deadline) -> Fetched:
        """Fetch one chunk's bytes, unverified."""

        def get(_: str) -> grpc.UnaryStreamMultiCallable[bytes, bytes]:
            return self._services.channel(address).unary_stream(GET)

        return collect_chunk(key, self._calls.stream(get, pack_keys([key]), deadline.left_s()))

    def artifacts(self, text: str, keys: Collection[ChunkKey], kept: KeptArtifacts, deadline: Deadline) -> dict[ChunkKey, StoredArtifact]:
        """Return artifacts by key: those that are kept, and the others from the stores that have them."""
        found = {key: artifact for key in keys if (artifact := kept.find(key)) is not None}
        lacking = [key for key in keys if key not in found]
        homes = self.homes(text, lacking, deadline) if lacking else []
        for key, home in zip(lacking, homes, strict=True):
            got = self.fetch(home, key, deadline)
            found[key] = kept.keep(stored_artifact(key, got.data, got.hit.reason))
        return found

    def invalidate(self, text: str, scope: Scope, deadline: Deadline) -> int:
        """Invalidate a scope on every store and return its largest epoch; raises TierUnavailableError that names who did not answer."""
        epochs, failed = [0], dict[str, KVError]()
        addresses = self.addresses(text)
        for address in addresses:
            try:
                epochs.append(self._invalidate(address, scope, deadline))
            except GONE as error:
                failed[address] = error
        if len(addresses) == 1 and failed:
            raise failed[addresses[0]]
        if failed:
            done = ", ".join(address for address in addresses if address not in failed) or "no store"
            names = ", ".join(f"{address} ({error})" for address, error in failed.items())
            raise TierUnavailableError(f"{scope.kind} {scope.value!r} is invalidated at {done}, and not yet at {names}: call again")
        return max(epochs)

    def _invalidate(self, address: str, scope: Scope, deadline: Deadline) -> int:
        """Send an invalidation to one store."""
        response = self._calls.one(lambda _: self._services.store(address).Invalidate, scope_to_wire(scope), deadline.left_s())
        return int(response.epoch)
