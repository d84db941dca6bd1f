"""Two tenants, one store: by no key, content, guess or clock does one learn what the other has."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

import pytest

from kvclient.lanes.choice import LaneName
from kvstore.core.api import PutNote, Scope, Status, StoreAPI
from kvstore.core.key import ChunkKey, storage_key, tenant_secret
from kvstore.server.grpc_server import RpcServer
from kvstore.server.service import StoreService
from tests.server.chunks import MASTER_SECRET, key, make_blob, make_service
from tests.server.serving import dialing, serving
from tests.server.two_samples import mann_whitney_p

N_LOOKUPS = 2000
ALPHA = 1e-6  # odds of a false alarm, for each way
BLOBS = [make_blob(seed, n_parts=1, part_nbytes=64) for seed in range(N_LOOKUPS)]
STORED, UNKNOWN = [key(blob) for blob in BLOBS[::2]], [key(blob) for blob in BLOBS[1::2]]
Look = Callable[[ChunkKey], object]


@pytest.fixture(scope="module")
def service() -> Iterator[StoreService]:
    """A store where tenant alpha has put every other chunk."""
    opened = make_service()
    for blob in BLOBS[::2]:
        opened.bind("alpha").put(blob, PutNote(source="book"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def server(service: StoreService) -> Iterator[RpcServer]:
    """The same store, served."""
    with serving(service) as running:
        yield running


def test_a_tenant_is_told_the_same_of_a_strangers_chunk_as_of_one_that_nobody_has(service: StoreService) -> None:
    """Status, reason, tier and size, word for word."""
    beta = service.bind("beta")
    for theirs, nobodys in zip(beta.lookup(STORED), beta.lookup(UNKNOWN), strict=True):
        assert (theirs.status, theirs.reason, theirs.tier, theirs.nbytes) == (nobodys.status, nobodys.reason, nobodys.tier, nobodys.nbytes)
        assert theirs.status is Status.ABSENT


def test_no_call_of_a_tenant_reaches_a_strangers_chunk(service: StoreService) -> None:
    """Though the key is known to it: whoever has the text can compute it."""
    alpha, beta = service.bind("alpha"), service.bind("beta")
    assert [beta.get(key) for key in STORED[:20]] == [None] * 20
    assert (beta.delete(STORED), beta.scrub(STORED), list(beta.entries())) == (0, 0, [])
    beta.invalidate(Scope("source", "book"))
    beta.invalidate(Scope("tenant"))
    assert all(hit.status is Status.READY for hit in alpha.lookup(STORED))


def test_the_explanation_of_a_strangers_chunk_is_that_of_one_that_nobody_has(service: StoreService) -> None:
    """And says nothing of how much others store."""
    explained = [service.bind("beta").explain(some) for some in (STORED[0], UNKNOWN[0])]
    assert explained[0].lines == explained[1].lines
    assert not any("B of " in line for line in explained[0].lines)


def test_the_same_content_is_stored_once_per_tenant() -> None:
    """A second writer that were told "it is there already" would know what the first one reads."""
    service, blob = make_service(), BLOBS[0]
    receipts = [service.bind(tenant).put(blob, PutNote()) for tenant in ("alpha", "beta")]
    assert [receipt.stored for receipt in receipts] == [True, True]
    assert service.bind("alpha").delete([key(blob)]) == 1
    assert service.bind("beta").get(key(blob)) is not None
    service.close()


def test_a_storage_key_cannot_be_guessed_from_what_a_tenant_knows(service: StoreService) -> None:
    """It takes the tenant's secret, which takes the server's."""
    places = {entry.storage_key for entry in service.store.entries()}
    known = STORED[0]
    guesses = [tenant_secret(secret, "alpha") for secret in (b"", bytes(32), known.content)] + [tenant_secret(MASTER_SECRET, "beta")]
    assert not {storage_key(guess, 0, 0, known) for guess in guesses} & places
    assert storage_key(tenant_secret(MASTER_SECRET, "alpha"), 0, 0, known) in places


def times_ns(look: Look, seed: int) -> tuple[list[float], list[float]]:
    """Return how long looks at strangers' chunks took, and at chunks that nobody has, each key once, in an order drawn at random.

    Each key is made right before it is looked at, so that all of them lie equally near to the processor, and Python knows no hash of them.
    """
    asked = [(key.to_bytes(), sample) for sample, keys in enumerate((STORED, UNKNOWN)) for key in keys]
    random.Random(seed).shuffle(asked)
    samples: tuple[list[float], list[float]] = ([], [])
    for spelled, sample in asked:
        wanted = ChunkKey.from_bytes(spelled)
        start = time.perf_counter_ns()
        look(wanted)
        samples[sample].append(time.perf_counter_ns() - start)
    return samples


def look_up(store: StoreAPI) -> Look:
    """Return what looks one key up."""
    return lambda key: store.lookup([key])


def test_a_lookup_takes_as_long_for_a_strangers_chunk_as_for_one_that_nobody_has(service: StoreService) -> None:
    """Measured in the server's own process, where no network blurs it."""
    assert mann_whitney_p(*times_ns(look_up(service.bind("beta")), seed=1)) > ALPHA


def test_a_lookup_over_the_network_takes_as_long(server: RpcServer) -> None:
    """The way a tenant has."""
    with dialing(server, "beta") as beta:
        assert mann_whitney_p(*times_ns(look_up(beta), seed=2)) > ALPHA


@pytest.mark.parametrize("lane", ["grpc", "tcp", "shm"])
def test_a_read_takes_as_long_on_every_lane(server: RpcServer, lane: LaneName) -> None:
    """Shared memory is looked into without asking the store."""
    with dialing(server, "beta", lane=lane) as beta:
        assert mann_whitney_p(*times_ns(beta.get, seed=3)) > ALPHA


def test_the_clock_would_tell_a_hit_from_a_miss(service: StoreService) -> None:
    """A test that can't see a difference would pass whatever there is: the owner's own lookups differ."""
    assert mann_whitney_p(*times_ns(look_up(service.bind("alpha")), seed=4)) < ALPHA


def test_two_samples_of_one_distribution_do_not_differ() -> None:
    """The test of the test."""
    rng = random.Random(5)
    one, other = ([rng.expovariate(1.0) for _ in range(1000)] for _ in range(2))
    assert mann_whitney_p(one, other) > 0.01
    assert mann_whitney_p(one, [1.2 * value for value in other]) < 0.01
    assert mann_whitney_p([1.0] * 50, [1.0] * 50) == 1.0
