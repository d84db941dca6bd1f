"""Quotas: what one tenant can't use up."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from kvclient.channel import bearer
from kvclient.lanes.choice import LaneName
from kvclient.lanes.frames import Kind, pack_error, parse_error
from kvclient.remote import RemoteStore
from kvclient.retry import Deadline, Retry
from kvstore.core.api import PutNote, Scope, Status
from kvstore.core.errors import ConfigError, CorruptError, KVError, QuotaError
from kvstore.server.access.quotas import Allowance
from kvstore.server.config import QuotaConfig
from kvstore.server.service import StoreService
from kvstore.store.disk import DiskTier
from kvstore.store.epochs import Epochs
from kvstore.store.memory import MemoryTier
from kvstore.store.results import StoreSettings
from kvstore.store.tiered import TieredStore
from tests.lanes.raw import PATIENCE_S, greeted, soon, until
from tests.server.chunks import MASTER_SECRET, blob_of, key, make_blob
from tests.server.raw import body_of, head_of, put_on
from tests.server.serving import TOKENS, dialing, serving

KIB = 1024


class Clock:
    """Seconds that pass when told."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def make_service(quotas: QuotaConfig, directory: Path | None = None) -> StoreService:
    """Return a service with quotas over a memory tier, and a disk tier where a directory is given."""
    tiers = [MemoryTier(64 << 20), *([DiskTier(directory, 64 << 20, fsync="never")] if directory else [])]
    store = TieredStore(tiers, StoreSettings(remote_timeout_s=0.2))
    return StoreService(store, Epochs(), MASTER_SECRET, 8 << 20, quotas=quotas)


@pytest.fixture
def services() -> Iterator[list[StoreService]]:
    """Services that are closed behind the test."""
    opened: list[StoreService] = []
    yield opened
    for service in opened:
        service.close()


def test_requests_beyond_the_rate_are_refused_with_the_time_to_wait() -> None:
    """And let in when that has passed, not a moment sooner."""
    clock = Clock()
    allowance = Allowance("alpha", QuotaConfig(requests_per_s=10, burst=3), clock)
    for _ in range(3):
        allowance.request()
    with pytest.raises(QuotaError, match="tenant alpha may make 10 requests a second") as caught:
        allowance.request()
    assert caught.value.retry_after_s == pytest.approx(0.1)
    clock.now_s += 0.099
    with pytest.raises(QuotaError):
        allowance.request()
    clock.now_s += 0.002
    allowance.request()


def test_a_pause_saves_up_a_burst_and_no_more() -> None:
    """A day of silence is no licence for a flood."""
    clock = Clock()
    allowance = Allowance("alpha", QuotaConfig(requests_per_s=10, burst=3), clock)
    clock.now_s += 86400
    for _ in range(3):
        allowance.request()
    with pytest.raises(QuotaError):
        allowance.request()


def test_a_large_request_is_let_in_and_paid_for_afterwards() -> None:
    """A batch of more chunks than a burst could never be read otherwise."""
    clock = Clock()
    allowance = Allowance("alpha", QuotaConfig(requests_per_s=10, burst=3), clock)
    allowance.request(23)
    clock.now_s += 2.0
    with pytest.raises(QuotaError):
        allowance.request()
    clock.now_s += 0.2
    allowance.request()


def test_transfers_beyond_the_number_are_refused() -> None:
    """Each holds a thread of the server."""
    allowance = Allowance("alpha", QuotaConfig(transfers=2))
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(allowance.transfer(1))
        with pytest.raises(QuotaError, match="transfers = 2"):
            stack.enter_context(allowance.transfer(1))
    with allowance.transfer(1):
        pass


def test_one_transfer_may_exceed_the_bytes_and_two_may_not() -> None:
    """Else a large chunk could never be read."""
    allowance = Allowance("alpha", QuotaConfig(inflight=100))
    with allowance.transfer(1000), pytest.raises(QuotaError), allowance.transfer(1):
        pass
    with allowance.transfer(60), allowance.transfer(40):
        pass


def test_a_transfer_that_fails_is_not_counted_any_more() -> None:
    """Or a tenant would lose its share to errors."""
    allowance = Allowance("alpha", QuotaConfig(transfers=1))
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), allowance.transfer(1):
            raise ZeroDivisionError


@pytest.mark.parametrize("lane", ["grpc", "tcp", "shm"])
def test_a_tenant_at_its_limit_gets_a_typed_error_with_a_hint_and_others_nothing(lane: LaneName) -> None:
    """On every way; what is read in shared memory without asking is no request."""
    quotas, blob = QuotaConfig(requests_per_s=0.5, burst=2), make_blob()
    service = StoreService(
        TieredStore([memory := MemoryTier(1 << 20, is_shared=True)]), Epochs(), MASTER_SECRET, 8 << 20, memory.shared, quotas=quotas
    )
    with serving(service) as server, dialing(server, "alpha", lane=lane) as alpha, dialing(server, "beta", lane=lane) as beta:
        alpha.put(blob, PutNote())
        assert alpha.get(key(blob)) is not None
        with pytest.raises(QuotaError, match=r"0\.5 requests a second") as caught:
            alpha.get(key(make_blob(1)))
        assert 0 < caught.value.retry_after_s <= 2.0
        assert beta.get(key(blob)) is None


@pytest.mark.parametrize("kind", [Kind.GET, Kind.GET_SHARE, Kind.PUT], ids=lambda kind: kind.name)
def test_what_is_beyond_the_limit_is_refused_before_it_is_read(kind: Kind) -> None:
    """Or whoever is refused could keep the store busy with what it sends: here, with what is no request at all."""
    with serving(make_service(QuotaConfig(requests_per_s=0.001, burst=1))) as server, greeted(server, "tcp") as frames:
        answers = []
        for _ in range(2):
            frames.send(kind, struct.pack("<II", 9, 0) + b"nonsense", soon())
            answers.append(type(parse_error(frames.receive(soon())[1])))
    assert answers == [CorruptError, QuotaError]


def test_a_lookup_of_some_keys_counts_once_and_each_chunk_that_is_read_once() -> None:
    """Looking costs the server little, reading does not."""
    blobs = [make_blob(seed) for seed in range(4)]
    with serving(make_service(QuotaConfig(requests_per_s=0.001, burst=6))) as server, dialing(server, lane="tcp") as alpha:
        alpha.lookup([key(blob) for blob in blobs])
        assert len(alpha.get_batch([key(blob) for blob in blobs])) == 4
        alpha.lookup([key(blob) for blob in blobs])
        with pytest.raises(QuotaError):
            alpha.lookup([key(blobs[0])])


@pytest.mark.parametrize(("n_keys", "n_requests"), [(0, 1), (1, 1), (256, 1), (257, 2), (16_384, 64)])
def test_256_keys_that_are_looked_at_are_a_request(n_keys: int, n_requests: int) -> None:
    """A tenant could otherwise keep the store busy with 16,384 of them in each."""
    clock = Clock()
    allowance = Allowance("alpha", QuotaConfig(requests_per_s=1.0), clock)
    allowance.looks(n_keys)
    clock.now_s += n_requests - 0.01
    with pytest.raises(QuotaError):
        allowance.request()
    clock.now_s += 0.02
    allowance.request()


@pytest.mark.parametrize("call", ["lookup", "delete"])
def test_many_keys_in_one_call_are_paid_for_afterwards(call: str) -> None:
    """Whatever is done with them."""
    keys = [key(make_blob(seed, n_parts=1, part_nbytes=1)) for seed in range(300)]
    with serving(make_service(QuotaConfig(requests_per_s=0.001, burst=2))) as server, dialing(server) as alpha:
        getattr(alpha, call)(keys)
        with pytest.raises(QuotaError):
            alpha.lookup(keys[:1])


def test_a_client_waits_as_long_as_it_is_told() -> None:
    """Its own pauses are shorter."""
    pauses: list[float] = []
    answers = iter([QuotaError("full", 0.7), None])

    def call(left_s: float) -> str:
        if error := next(answers):
            raise error
        return "done"

    assert Retry(sleep=pauses.append).call(call, Deadline.after(10.0)) == "done"
    assert pauses == [0.7]


def test_a_client_that_would_wait_past_its_deadline_fails_at_once() -> None:
    """With what the server said."""

    def call(left_s: float) -> str:
        raise QuotaError("full", 30.0)

    with pytest.raises(QuotaError):
        Retry(sleep=lambda _: None).call(call, Deadline.after(10.0))


@pytest.mark.parametrize("retry_after_s", [0.0, 0.001, 12.5])
def test_a_hint_travels_in_a_lanes_error(retry_after_s: float) -> None:
    """In milliseconds."""
    error = parse_error(pack_error(QuotaError("full", retry_after_s)))
    assert (type(error), str(error), error.retry_after_s) == (QuotaError, "full", retry_after_s)


@pytest.mark.parametrize("hint", [b"soon", b"-5", b"1e9", b"1" * 4000, "٣".encode(), b""])
def test_a_hint_that_is_no_number_says_nothing(hint: bytes) -> None:
    """A lying server can't have a client sleep for long."""
    error = parse_error(b"QuotaError\0full\0" + hint)
    assert (type(error), error.retry_after_s) == (QuotaError, 0.0)


def stored_seeds(service: StoreService, tenant: str, count: int) -> list[int]:
    """Return which of the chunks are there."""
    store = service.bind(tenant)
    return [seed for seed in range(count) if store.lookup([key(blob_of(10 * KIB, seed))])[0].status is Status.READY]


def test_a_tenant_that_stores_beyond_its_quota_loses_its_own_oldest_chunks(services: list[StoreService]) -> None:
    """And nobody else's."""
    service = make_service(QuotaConfig(stored=35 * KIB))
    services.append(service)
    service.bind("beta").put(blob_of(10 * KIB, 0), PutNote())
    for seed in range(5):
        service.bind("alpha").put(blob_of(10 * KIB, seed), PutNote())
    assert stored_seeds(service, "alpha", 5) == [2, 3, 4]
    assert stored_seeds(service, "beta", 1) == [0]
    assert service.bind("alpha").lookup([key(blob_of(10 * KIB, 0))])[0].reason == "evicted"


def test_a_chunk_that_is_put_twice_counts_once(services: list[StoreService]) -> None:
    """And pushes nothing out."""
    service = make_service(QuotaConfig(stored=25 * KIB))
    services.append(service)
    for seed in (0, 1, 1, 1):
        service.bind("alpha").put(blob_of(10 * KIB, seed), PutNote())
    assert stored_seeds(service, "alpha", 2) == [0, 1]


def test_what_was_deleted_is_not_counted_any_more(services: list[StoreService]) -> None:
    """Though it was not the oldest."""
    service = make_service(QuotaConfig(stored=25 * KIB))
    services.append(service)
    alpha = service.bind("alpha")
    for seed in range(2):
        alpha.put(blob_of(10 * KIB, seed), PutNote())
    alpha.delete([key(blob_of(10 * KIB, 1))])
    alpha.put(blob_of(10 * KIB, 2), PutNote())
    assert stored_seeds(service, "alpha", 3) == [0, 2]


def test_a_tenant_that_invalidated_everything_can_store_again(services: list[StoreService]) -> None:
    """What nobody can read any more goes first."""
    service = make_service(QuotaConfig(stored=25 * KIB))
    services.append(service)
    alpha = service.bind("alpha")
    for seed in range(2):
        alpha.put(blob_of(10 * KIB, seed), PutNote())
    alpha.invalidate(Scope("tenant"))
    for seed in range(2):
        alpha.put(blob_of(10 * KIB, seed), PutNote())
    assert stored_seeds(service, "alpha", 2) == [0, 1]


def test_a_chunk_that_never_fits_is_refused(services: list[StoreService]) -> None:
    """Waiting would not help, so there is no hint."""
    service = make_service(QuotaConfig(stored=5 * KIB))
    services.append(service)
    with pytest.raises(QuotaError, match=r"raise quotas\.stored") as caught:
        service.bind("alpha").put(blob_of(10 * KIB), PutNote())
    assert caught.value.retry_after_s == 0.0


def test_what_was_stored_before_a_restart_counts(services: list[StoreService], tmp_path: Path) -> None:
    """The oldest goes first, still."""
    quotas = QuotaConfig(stored=25 * KIB)
    before = make_service(quotas, tmp_path)
    for seed in range(2):
        before.bind("alpha").put(blob_of(10 * KIB, seed), PutNote())
        assert before.store.drain()
    before.close()
    after = make_service(quotas, tmp_path)
    services.append(after)
    after.bind("alpha").put(blob_of(10 * KIB, 2), PutNote())
    assert len(stored_seeds(after, "alpha", 3)) == 2


def test_a_tenant_that_is_exempt_has_no_limit() -> None:
    """Such as the operator's own."""
    quotas = QuotaConfig(requests_per_s=1, stored=1, exempt="own, other")
    assert [quotas.of(tenant) == QuotaConfig() for tenant in ("own", "other", "ow", "")] == [True, True, False, False]


def stalling(blob: bytearray, go_on: threading.Event) -> Iterator[bytes]:
    """Yield a put that stops in the middle until it is told to go on."""
    yield head_of(blob)
    go_on.wait(PATIENCE_S)
    yield body_of(blob)


def test_calls_that_stall_keep_nobody_else_out() -> None:
    """Threads are shared by all tenants: what one may hold of them is limited."""
    go_on, blob = threading.Event(), make_blob()
    with serving(make_service(QuotaConfig(calls=2))) as server, grpc.insecure_channel(server.address) as channel, ExitStack() as stack:
        pending = [put_on(channel).future(stalling(blob, go_on), metadata=bearer(TOKENS["alpha"])) for _ in range(2)]
        alpha, beta = (stack.enter_context(dialing(server, tenant, lane="grpc")) for tenant in ("alpha", "beta"))
        until(lambda: server.budget.lent_bytes > 0)
        until(lambda: server_is_full_for(alpha))
        assert beta.lookup([key(blob)])[0].status is Status.ABSENT
        go_on.set()
        assert [call.code() for call in pending] == [grpc.StatusCode.OK] * 2
        until(lambda: not server_is_full_for(alpha))


def server_is_full_for(store: RemoteStore) -> bool:
    """Tell whether a call is refused."""
    try:
        store.lookup([key(make_blob())])
    except QuotaError as error:
        return "2 calls at once" in str(error)
    return False


@pytest.mark.parametrize("name", ["stored", "requests_per_s", "burst", "calls", "transfers", "inflight"])
def test_a_negative_quota_is_refused(name: str) -> None:
    """0 says that there is none."""
    with pytest.raises(ConfigError, match=name):
        QuotaConfig(**{name: -1})


def test_a_quota_error_is_a_retryable_capacity_error() -> None:
    """So whoever knows only the parent does the right thing."""
    assert isinstance(QuotaError("full"), KVError)
    assert (QuotaError.code, QuotaError.retryable) == ("RESOURCE_EXHAUSTED", True)
