"""StoreAPI over several stores: each chunk has its place by rendezvous hashing, and a store that is away is a miss at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TypeVar

from kvclient.attempts import Attempts
from kvclient.cluster.lacking import Lacking
from kvclient.cluster.member import GONE, Member, Server
from kvclient.cluster.members import Members, Resolve, resolve_name
from kvclient.cluster.merge import better, merged_entries, merged_explanation, merged_stats
from kvclient.cluster.roster import Pace, Roster
from kvclient.cluster.together import Together
from kvclient.retry import Deadline, Retry
from kvstore.core.api import BlobReader, Entry, Explanation, Hit, PutNote, PutReceipt, Scope, Status, StoreStats
from kvstore.core.blob import Buffer, key_of, parse_header
from kvstore.core.errors import CapacityError, ConfigError, DeadlineError, KVError, TierUnavailableError
from kvstore.core.key import ChunkKey
from kvstore.core.rendezvous import ranked

T = TypeVar("T")

logger = logging.getLogger(__name__)

MAX_REPLICAS = 2
_TRIES = 8  # of a put while no store is ready; their pauses take 3 s, in which one that was restarted is found again
_PATIENCE_S = 1.0
"""A store that did not keep a shorter deadline than this has not failed yet."""


@dataclass(frozen=True)
class _Place:
    """Where a chunk is looked for: the stores that are ready, the best first, and whether one that ranks before them was down."""

    members: Sequence[Member]
    was_owner_down: bool

    def at(self, turn: int) -> Member | None:
        """Return the store to ask at a turn, if there is one and it has not failed meanwhile."""
        member = self.members[turn] if turn < len(self.members) else None
        return member if member and not member.is_down else None

    @property
    def is_owner_away(self) -> bool:
        """Whether the store that should have the chunk does not answer."""
        return self.was_owner_down or any(member.is_down for member in self.members[:1])


class ClusterStore:
    """Implements `StoreAPI` over all stores that a name or list stands for. Thread-safe; raises nothing but KVError.

    A chunk lies on the store that ranks first for its key (`kvstore.core.rendezvous`) of those that are ready. What that store does not
    have is looked for on the second, which had it before the first one joined, took it while the first was away, or holds a replica.
    With two replicas every chunk is put to both: the put is the one moment at which a client has the bytes, and nobody can tell then what
    will be hot; replicas that are not read are what eviction by value lets go first.

    Parameters
    ----------
    members : Members
        Who the stores are.
    connect : callable
        From an address to the client of one store that tries nothing again: what fails is tried elsewhere.
    replicas : int
        How many stores get each chunk: 1 or 2.
    timeout_s : float
        Deadline of a call that isn't given another one.
    """

    def __init__(
        self,
        members: Members,
        connect: Callable[[str], Server],
        replicas: int = 1,
        timeout_s: float = 30.0,
        retry: Retry | None = None,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
        resolve: Resolve = resolve_name,
        together: Together | None = None,
    ) -> None:
        if not 1 <= replicas <= MAX_REPLICAS:
            raise ConfigError(f"a chunk is put to 1 or {MAX_REPLICAS} stores, got {replicas} replicas")
        self._replicas, self._timeout_s, self._retry = replicas, timeout_s, retry or Retry(_TRIES)
        self._together = together or Together()
        pace = pace or Pace()
        self._roster = Roster(members, connect, self._together, pace, clock, resolve)
        self._lacking = Lacking(pace.fresh_s, clock)

    def lookup(self, keys: Sequence[ChunkKey], lease_s: float = 0.0, timeout_s: float | None = None) -> list[Hit]:
        """Return one hit per key, in order: one round trip to each store, and one more for what the first did not have.

        What the second did not have either a moment ago is not asked of it again, unless the first is away.
        """
        given_s = self._timeout_s if timeout_s is None else timeout_s
        deadline, places = Deadline.after(given_s), self._places(keys)
        hits = [Hit(key, Status.ABSENT, reason="unavailable") for key in keys]
        for turn in range(MAX_REPLICAS):
            wanted = {i: m for i, p in enumerate(places) if hits[i].status is Status.ABSENT and (m := p.at(turn))}
            if turn:
                self._recall(wanted, places, hits)
            if not wanted or (left_s := deadline.at_s - deadline.clock()) <= 0:
                break
            found, refused = self._spread(wanted, partial(_look, keys, lease_s, left_s), given_s)
            for i, hit in found.items():
                hits[i] = better(hits[i], hit)
                if turn:
                    self._lacking.note(wanted[i].name, hit)
            if refused:
                raise refused
        return [_with_reason(hit, place) for hit, place in zip(hits, places, strict=True)]

    def get(self, key: ChunkKey, timeout_s: float | None = None) -> BlobReader | None:
        """Open a chunk; the deadline covers the reading of its parts too. None is a miss."""
        return self.get_batch([key], timeout_s)[0]

    def get_batch(self, keys: Sequence[ChunkKey], timeout_s: float | None = None) -> list[BlobReader | None]:
        """Open several chunks, side by side on all stores that have some; None is a miss, also where a store does not answer."""
        given_s = self._timeout_s if timeout_s is None else timeout_s
        deadline, places = Deadline.after(given_s), self._places(keys)
        readers: list[BlobReader | None] = [None] * len(keys)
        for turn in range(MAX_REPLICAS):
            wanted = {i: m for i, p in enumerate(places) if readers[i] is None and (m := p.at(turn))}
            if not wanted or (left_s := deadline.at_s - deadline.clock()) <= 0:
                break
            found, refused = self._spread(wanted, partial(_open, keys, left_s), given_s)
            for i, reader in found.items():
                readers[i] = reader
            if refused:
                _close(readers)
                raise refused
        return readers

    def put(self, blob: Buffer, note: PutNote) -> PutReceipt:
        """Send a whole blob to the store that ranks first, and to the second where there are replicas; one of them is enough.

        A store that does not answer is left out and the next in rank takes the chunk, which may take the deadline twice.
        """
        key = key_of(parse_header(blob).manifest)
        attempts = Attempts(self._retry, Deadline.after(2 * self._timeout_s))
        while True:
            try:
                return self._put(key, blob, note)
            except (*GONE, CapacityError) as error:
                pause_s = attempts.pause_s(error)
            self._retry.sleep(pause_s)

    def delete(self, keys: Sequence[ChunkKey]) -> int:
        """Remove chunks from all stores and return how many were there; a copy counts like another chunk, up to the number of keys.

        A store that does not answer is named in the log, and removes them before it is read again.
        """
        if not self._roster.ready():
            raise self._roster.nobody()
        away = [m for m in self._roster.everyone() if m.is_down]
        outcomes = self._together.call({m: partial(m.server.delete, keys) for m in self._roster.everyone() if not m.is_down})
        if refused := self._learn(outcomes.errors):
            raise refused
        for member in (*away, *outcomes.errors):
            member.owe(keys)
            logger.warning("store %s is away and removes %d chunks when it is back", member.address, len(keys))
        if not outcomes.results:
            raise self._roster.nobody()
        return min(len(keys), sum(outcomes.results.values()))

    def invalidate(self, scope: Scope) -> int:
        """Make a scope a miss on all stores and return its new epoch.

        Where a store does not answer this raises TierUnavailableError that names it: the others have done it, and that store is brought up
        to date before this client reads from it. Call again to be sure of those that other clients read from.
        """
        everyone = self._roster.everyone()
        outcomes = self._together.call({m: partial(m.server.invalidate, scope) for m in everyone})
        refused = self._learn(outcomes.errors)
        for member, error in outcomes.errors.items():
            if isinstance(error, GONE):
                member.owed_scopes.add(scope)
        missed = {**outcomes.errors, **self._roster.settle(list(outcomes.results))}
        if refused:
            raise refused
        if missed or not everyone:
            done = ", ".join(m.address for m in everyone if m not in missed) or "no store"
            names = ", ".join(f"{m.address} ({error})" for m, error in missed.items()) or str(self._roster.nobody())
            raise TierUnavailableError(f"{scope.kind} {scope.value!r} is invalidated at {done}, and not yet at {names}: call again")
        return self._roster.epoch(scope)

    def entries(self, limit: int = 1000) -> Iterator[Entry]:
        """Iterate over at most `limit` chunks of the stores that answer, each store's most recently used first."""
        yield from islice(merged_entries(self._ask_ready(lambda member: list(member.server.entries(limit))).values()), limit)

    def stats(self) -> StoreStats:
        """Return the sums over the stores that answer; a store that is away makes every tier unavailable."""
        stats = merged_stats(list(self._ask_ready(lambda member: member.server.stats()).values()))
        if not any(m.is_down for m in self._roster.everyone()):
            return stats
        return StoreStats(stats.counters, tuple(replace(tier, is_available=False) for tier in stats.tiers))

    def explain(self, key: ChunkKey) -> Explanation:
        """Say why a chunk is or is not served, by each store."""
        said = self._ask_ready(lambda member: member.server.explain(key))
        order = [m for m in self._places([key])[0].members if m in said]
        away = [m.address for m in self._roster.everyone() if m.is_down]
        return merged_explanation(self.lookup([key])[0], {m.address: said[m] for m in order}, away)

    def close(self) -> None:
        """Close all connections; what is still being read ends with an error."""
        self._together.close()
        self._roster.close()

    def _put(self, key: ChunkKey, blob: Buffer, note: PutNote) -> PutReceipt:
        """Put a chunk to the stores that are ready now; the first receipt is that of the store that ranks first of those that took it."""
        members = self._places([key])[0].members[: self._replicas]
        if not members:
            raise self._roster.nobody()
        found, refused = self._spread(dict(enumerate(members)), lambda member, _: [member.server.put(blob, note)], self._timeout_s)
        if not found:
            raise refused or self._roster.nobody()
        for i in found:
            self._lacking.forget(members[i].name, key)
        return found[min(found)]

    def _recall(self, wanted: dict[int, Member], places: Sequence[_Place], hits: list[Hit]) -> None:
        """Leave out what stores lacked a moment ago, and take their word from then."""
        for i, member in list(wanted.items()):
            if not places[i].is_owner_away and (miss := self._lacking.find(member.name, hits[i].key)):
                hits[i] = better(hits[i], miss)
                del wanted[i]

    def _places(self, keys: Sequence[ChunkKey]) -> list[_Place]:
        """Return where chunks are looked for; raises what is wrong where no store is ready for another reason than that it is away."""
        ready = {m.name: m for m in reversed(self._roster.ready())}  # stores with a copied data directory have one name: the first counts
        if not ready and not isinstance(error := self._roster.nobody(), GONE):
            raise error
        names = list({m.name for m in self._roster.everyone()} | ready.keys())
        orders = (ranked(key.to_bytes(), names) for key in keys)
        return [_Place([ready[name] for name in order if name in ready], any(name not in ready for name in order[:1])) for order in orders]

    def _spread(
        self, wanted: Mapping[int, Member], call: Callable[[Member, list[int]], Sequence[T]], given_s: float
    ) -> tuple[dict[int, T], KVError | None]:
        """Ask members side by side, each for its positions; return what came, and the error of one that answered with another than GONE."""
        groups: dict[Member, list[int]] = {}
        for i, member in wanted.items():
            groups.setdefault(member, []).append(i)
        outcomes = self._together.call({m: partial(call, m, at) for m, at in groups.items()})
        found = {i: result for m, results in outcomes.results.items() for i, result in zip(groups[m], results, strict=True)}
        return found, self._learn(outcomes.errors, given_s)

    def _learn(self, errors: Mapping[Member, KVError], given_s: float | None = None) -> KVError | None:
        """Leave out members that do not answer; return the first error that says something else.

        A deadline that was short says little about a member: it is asked in the background whether it is there.
        """
        is_short = given_s is not None and given_s < min(_PATIENCE_S, self._timeout_s)
        for member, error in errors.items():
            if isinstance(error, DeadlineError) and is_short:
                self._roster.probe(member)
            elif isinstance(error, GONE):
                self._roster.fail(member, error)
        return next((error for error in errors.values() if not isinstance(error, GONE)), None)

    def _ask_ready(self, call: Callable[[Member], T]) -> dict[Member, T]:
        """Ask all members that are ready, and return what those say that answer; raises where none does, or one refuses."""
        outcomes = self._together.call({m: partial(call, m) for m in self._roster.ready()})
        if refused := self._learn(outcomes.errors):
            raise refused
        if not outcomes.results:
            raise self._roster.nobody()
        return dict(outcomes.results)


def _with_reason(hit: Hit, place: _Place) -> Hit:
    """Return a hit that does not call a chunk never stored while the store that should have it is away."""
    is_unsure = hit.status is Status.ABSENT and place.is_owner_away and hit.reason == "never_stored"
    return replace(hit, reason="unavailable") if is_unsure else hit


def _look(keys: Sequence[ChunkKey], lease_s: float, left_s: float, member: Member, at: Sequence[int]) -> list[Hit]:
    """Look up the keys of some positions at one store."""
    return member.server.lookup([keys[i] for i in at], lease_s, left_s)


def _open(keys: Sequence[ChunkKey], left_s: float, member: Member, at: Sequence[int]) -> list[BlobReader | None]:
    """Open the chunks of some positions at one store."""
    return member.server.get_batch([keys[i] for i in at], left_s)


def _close(readers: Sequence[BlobReader | None]) -> None:
    """Close all readers that there are."""
    for reader in readers:
        if reader is not None:
            reader.close()
