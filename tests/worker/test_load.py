"""Loading chunks beside the model: every failure is LoadFailed, in time; what arrives is what was asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from kvstore.core.api import PutNote, StoreAPI
from kvstore.core.errors import CorruptError, DeadlineError, KVError, TierUnavailableError
from kvstore.core.identity import ModelIdentity
from kvstore.core.key import ChunkKey, Kind, content_key
from kvstore.server.service import BoundStore, StoreService
from kvworker.answer import load
from kvworker.answer.device_tier import DeviceTier
from kvworker.answer.load import Loader, StoredSource, fetch
from kvworker.codec.specs import find_codec
from kvworker.engine.engine import LoadFailed
from tests.engine.prompts import Tiny
from tests.worker.lab import FailingGet, HungGet, LosingGet, LyingGet, TamperedParts, Wrapped
from tests.worker.waiting import until

TOKENS = (256, 10, 20, 30, 40)


@dataclass
class Shelf:
    """A stored passage, and what loads it."""

    tiny: Tiny
    store: BoundStore
    tier: DeviceTier
    loader: Loader
    key: ChunkKey

    def hold(self, n_tokens: int = len(TOKENS), tenant: str = "alice") -> StoredSource:
        """Hold the passage's source without starting it."""
        return self.loader.hold(tenant, self.key, n_tokens)

    def start(self, store: StoreAPI | None = None, n_tokens: int = len(TOKENS)) -> StoredSource:
        """Load the passage, and return when nothing more will come of it."""
        source = self.hold(n_tokens)
        self.loader.lane(store or self.store).add([source])
        until(lambda: source.has_arrived or bool(source.failure))
        return source


def encode(tiny: Tiny, tokens: tuple[int, ...] = TOKENS, identity: ModelIdentity | None = None) -> tuple[ChunkKey, bytearray]:
    """Compute a passage and return its chunk."""
    identity, codec = identity or tiny.engine.identity, find_codec("raw")
    content = content_key(identity.namespace, Kind.ALONE, tokens)
    (kv,) = tiny.engine.export([tokens])
    return ChunkKey(identity.namespace, content, codec.spec.variant()), codec.encode(kv, identity, Kind.ALONE, content)


@pytest.fixture
def shelf(tiny: Tiny, service: StoreService) -> Iterator[Shelf]:
    """Yield a stored passage."""
    store, tier = service.bind("alice"), DeviceTier(1 << 20)
    key, blob = encode(tiny)
    store.put(blob, PutNote())
    loader = Loader(tiny.engine.identity, "cpu", tier)
    yield Shelf(tiny, store, tier, loader, key)
    loader.close()


def test_a_stored_passage_arrives_whole_and_says_where_it_came_from(shelf: Shelf) -> None:
    """K and V of every layer group are what the engine computed."""
    source = shelf.start()
    (kv,) = shelf.tiny.engine.export([TOKENS])
    for index, chunk in enumerate(kv):
        loaded = source.group(index)
        torch.testing.assert_close(loaded.k, chunk.k, rtol=0, atol=0)
        torch.testing.assert_close(loaded.v, chunk.v, rtol=0, atol=0)
    assert source.has_arrived
    assert (source.tier, source.failure) == ("memory", "")
    assert source.nbytes == len(encode(shelf.tiny)[1])
    assert source.seconds > 0


def test_a_fetch_that_has_not_arrived_is_not_kept(shelf: Shelf) -> None:
    """Only complete passages go to the device tier."""
    source = shelf.start(TamperedParts(shelf.store, raising(TierUnavailableError("gone"))))
    assert source.n_arrived == 1
    assert source.decoded() is None
    shelf.loader.keep("alice", source)
    assert shelf.tier.stats().n_passages == 0


def test_what_is_kept_on_the_device_outlives_the_store(shelf: Shelf) -> None:
    """A raw chunk aliases the store's memory; the copy on the device does not, and no other tenant finds it."""
    source = shelf.start()
    before = [source.group(i).k.clone() for i in range(2)]
    shelf.loader.keep("alice", source)
    del source
    shelf.store.delete([shelf.key])
    for n in range(40):  # write over the memory that is free again
        shelf.store.put(encode(shelf.tiny, (256, n, n, n, n))[1], PutNote())
    kept = shelf.tier.get(("alice", shelf.key))
    assert kept is not None
    assert all(torch.equal(chunk.k, k) for chunk, k in zip(kept, before, strict=True))
    assert shelf.tier.get(("bob", shelf.key)) is None


def test_a_chunk_as_large_as_was_asked_for_is_decoded(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens and the model say how large it is; what strangers may claim at most does not count then."""
    monkeypatch.setattr(load, "MAX_DECODED_NBYTES", 1)
    assert shelf.start().has_arrived


def raising(error: Exception) -> Callable[[int, memoryview], memoryview]:
    """Return a change that delivers the first part and raises instead of the second."""

    def change(index: int, data: memoryview) -> memoryview:
        if index:
            raise error
        return data

    return change


@pytest.mark.parametrize(
    "error",
    [
        CorruptError("digest"),
        DeadlineError("late"),
        TierUnavailableError("gone"),
        KVError(),
        RuntimeError("a bug"),
        TimeoutError(),
        MemoryError(),
    ],
)
def test_an_error_in_the_middle_fails_what_is_behind_it_and_closes_the_reader(shelf: Shelf, error: Exception) -> None:
    """What came before it was verified; whatever is raised becomes LoadFailed with a reason."""
    store = TamperedParts(shelf.store, raising(error))
    source = shelf.start(store)
    source.group(0)
    with pytest.raises(LoadFailed):
        source.group(1)
    assert source.failure
    assert not source.has_arrived
    until(lambda: store.readers[0].closed == 1)


@pytest.mark.parametrize("error", [TierUnavailableError("gone"), KVError(), ZeroDivisionError("a bug"), TimeoutError()])
def test_whatever_get_raises_becomes_a_failed_load(shelf: Shelf, error: Exception) -> None:
    """No exception of a store reaches the engine."""
    source = shelf.start(FailingGet(shelf.store, error))
    with pytest.raises(LoadFailed):
        source.group(0)
    assert source.failure


def test_a_chunk_that_is_gone_is_a_failed_load(shelf: Shelf) -> None:
    """Evicted between lookup and get."""
    source = shelf.start(LosingGet(shelf.store))
    with pytest.raises(LoadFailed, match="no longer stored"):
        source.group(1)


def other_tokens(tiny: Tiny) -> bytearray:
    """Return a chunk of other tokens of the same number."""
    return encode(tiny, (256, 10, 20, 30, 41))[1]


def other_length(tiny: Tiny) -> bytearray:
    """Return a chunk of fewer tokens."""
    return encode(tiny, TOKENS[:-1])[1]


def other_model(tiny: Tiny) -> bytearray:
    """Return a chunk of a model of the same geometry."""
    return encode(tiny, identity=replace(tiny.engine.identity, weights_digest="0" * 64))[1]


def other_codec(tiny: Tiny) -> bytearray:
    """Return a chunk of the same passage in another variant."""
    identity = tiny.engine.identity
    (kv,) = tiny.engine.export([TOKENS])
    return find_codec("int8").encode(kv, identity, Kind.ALONE, content_key(identity.namespace, Kind.ALONE, TOKENS))


@pytest.mark.parametrize("make", [other_tokens, other_length, other_model, other_codec])
def test_a_store_that_hands_out_another_chunk_is_not_believed(shelf: Shelf, make: Callable[[Tiny], bytearray]) -> None:
    """Every byte of it verifies, but it is not what was asked for."""
    source = shelf.start(LyingGet(shelf.store, make(shelf.tiny)))
    with pytest.raises(LoadFailed):
        source.group(0)
    assert not source.has_arrived


def test_a_passage_of_another_length_than_the_caller_knows_is_not_loaded(shelf: Shelf) -> None:
    """The rows of a prompt must be filled exactly."""
    with pytest.raises(LoadFailed, match="5 tokens"):
        shelf.start(n_tokens=6).group(0)


@pytest.mark.parametrize("n_lacking", [1, 64])
def test_a_part_that_is_too_short_is_a_failed_load(shelf: Shelf, n_lacking: int) -> None:
    """Even where a reader forgot to verify it."""
    source = shelf.start(TamperedParts(shelf.store, lambda _, data: data[:-n_lacking]))
    with pytest.raises(LoadFailed):
        source.group(0)
    assert source.failure


def test_a_closed_loader_fails_its_loads_instead_of_raising(shelf: Shelf) -> None:
    """A request that is under way while the worker closes computes."""
    shelf.loader.close()
    assert "closing" in shelf.start().failure


def test_loading_leaves_no_thread_behind() -> None:
    """Threads end with the loader."""
    before = threading.active_count()
    loader = Loader(None, "cpu", DeviceTier(0))  # type: ignore[arg-type]
    loader._pool.submit(int).result(10)
    loader.close()
    until(lambda: threading.active_count() <= before)


def test_two_holders_of_one_chunk_cause_one_load(shelf: Shelf) -> None:
    """Whoever asks while it is under way gets the same source."""
    store = HungGet(shelf.store)
    sources = [shelf.hold(), shelf.hold()]
    for source in sources:
        shelf.loader.lane(store).add([source])
    until(lambda: len(store.gets) == 1)
    store.gate.set()
    until(lambda: all(source.failure for source in sources))
    assert sources[0] is sources[1]
    assert len(store.gets) == 1


def test_a_holder_that_gives_up_leaves_the_load_to_the_other(shelf: Shelf) -> None:
    """The chunk still arrives."""
    mine, theirs = shelf.hold(), shelf.hold()
    shelf.loader.release("alice", mine)
    shelf.loader.lane(shelf.store).add([theirs])
    until(lambda: theirs.has_arrived)


def test_a_load_that_nobody_waits_for_is_not_begun(shelf: Shelf) -> None:
    """All holders gave up while it stood in line."""
    store, source = Wrapped(shelf.store), shelf.hold()
    shelf.loader.release("alice", source)
    fetch(store, [source], 1.0)
    assert not store.gets


def test_a_load_that_nobody_waits_for_any_more_ends_behind_the_part_under_way(shelf: Shelf) -> None:
    """The link is free for others."""
    source = shelf.hold()
    store = TamperedParts(shelf.store, lambda _, data: (shelf.loader.release("alice", source), data)[1])
    fetch(store, [source], 1.0)
    assert (source.n_arrived, source.has_arrived) == (1, False)


@pytest.mark.parametrize("end", ["failed", "released"])
def test_a_load_that_is_over_is_not_joined(shelf: Shelf, end: str) -> None:
    """The next request tries again."""
    source = shelf.hold()
    if end == "failed":
        source.fail(KVError("gone"))
    else:
        shelf.loader.release("alice", source)
    assert shelf.hold() is not source


def test_another_tenant_never_joins_a_load(shelf: Shelf) -> None:
    """What is one's own is read with one's own right."""
    assert shelf.hold() is not shelf.hold(tenant="bob")


def test_a_batch_brings_the_first_group_of_all_before_the_second_of_any(shelf: Shelf) -> None:
    """The first layers run while the last ones travel."""
    other, blob = encode(shelf.tiny, (256, 1, 2))
    shelf.store.put(blob, PutNote())
    order: list[int] = []
    store = TamperedParts(shelf.store, lambda index, data: (order.append(index), data)[1])
    fetch(store, [shelf.hold(), shelf.loader.hold("alice", other, 3)], 1.0)
    assert order == [0, 0, 1, 1]


def test_each_chunk_of_a_batch_is_charged_for_its_own_parts(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """What all take together is the time of the batch, so that a byte costs the same in a batch as alone: here 1, 2, 3 and 4 s a part."""
    other, blob = encode(shelf.tiny, (256, 1, 2))
    shelf.store.put(blob, PutNote())
    now_s, parts_s = [0.0], iter((1.0, 2.0, 3.0, 4.0))
    monkeypatch.setattr(load, "time", SimpleNamespace(perf_counter=lambda: now_s[0]))

    def take_time(_: int, data: memoryview) -> memoryview:
        now_s[0] += next(parts_s)
        return data

    sources = [shelf.hold(), shelf.loader.hold("alice", other, 3)]
    fetch(TamperedParts(shelf.store, take_time), sources, 1.0)
    assert [source.seconds for source in sources] == pytest.approx([1 + 3, 2 + 4])


def test_one_chunk_of_a_batch_that_fails_leaves_the_others_alone(shelf: Shelf) -> None:
    """A batch that can't be opened as a whole is opened one by one."""
    other, blob = encode(shelf.tiny, (256, 1, 2))
    shelf.store.put(blob, PutNote())
    sound, lost = shelf.hold(), shelf.loader.hold("alice", other, 3)
    fetch(FailingGet(shelf.store, CorruptError("header"), only=[other]), [lost, sound], 1.0)
    assert (sound.has_arrived, lost.failure) == (True, "header")


def test_whoever_listens_too_late_is_told_at_once(shelf: Shelf) -> None:
    """A chunk may arrive between its start and the first listener."""
    told: list[StoredSource] = []
    source = shelf.start()
    source.listen(told.append)
    assert told == [source]
