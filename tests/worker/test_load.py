"""Loading chunks beside the model: every failure is LoadFailed, in time; what arrives is what was asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch

from kvstore.core.api import PutNote
from kvstore.core.errors import CorruptError, DeadlineError, KVError, TierUnavailableError
from kvstore.core.identity import ModelIdentity
from kvstore.core.key import ChunkKey, Kind, content_key
from kvstore.server.service import BoundStore, StoreService
from kvworker.answer.device_tier import DeviceTier
from kvworker.answer.load import Loader, StoredSource
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

    def start(self, store: Wrapped | None = None, timeout_s: float = 5.0, n_tokens: int = len(TOKENS)) -> StoredSource:
        """Begin to load the passage."""
        return self.loader.start(store or Wrapped(self.store), self.key, n_tokens, timeout_s)


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


def test_a_fetch_that_has_not_arrived_is_not_decoded_either(shelf: Shelf) -> None:
    """Only complete passages go to the device tier."""
    source = shelf.start()
    source.group(0)
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


@pytest.mark.parametrize("timeout_s", [0.0, 0.05, 0.2])
def test_a_store_that_hangs_is_waited_for_until_the_deadline_and_no_longer(shelf: Shelf, timeout_s: float) -> None:
    """The deadline is that of the whole passage: the second group does not wait again."""
    store = HungGet(shelf.store)
    started = time.monotonic()
    source = shelf.start(store, timeout_s)
    for index in (0, 1):
        with pytest.raises(LoadFailed, match="in time"):
            source.group(index)
    took_s = time.monotonic() - started
    store.gate.set()
    assert timeout_s <= took_s < timeout_s + 0.5
    assert timeout_s <= source.wait_s + 0.02
    assert (source.failure, source.has_arrived) == ("timeout", False)


def test_fetches_wait_for_a_thread_within_their_own_deadline(shelf: Shelf) -> None:
    """All threads may be busy with a store that hangs."""
    store = HungGet(shelf.store)
    for _ in range(4):
        shelf.start(store)
    started = time.monotonic()
    with pytest.raises(LoadFailed):
        shelf.start(timeout_s=0.1).group(0)
    assert time.monotonic() - started < 1
    store.gate.set()
    assert shelf.start().group(0).k.shape[2] == len(TOKENS)


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
    with pytest.raises(LoadFailed, match="closing"):
        shelf.start().group(0)


def test_loading_leaves_no_thread_behind() -> None:
    """Threads end with the loader."""
    before = threading.active_count()
    loader = Loader(None, "cpu", DeviceTier(0))  # type: ignore[arg-type]
    loader._pool.submit(int).result(10)
    loader.close()
    until(lambda: threading.active_count() <= before)
