"""Hostile input on the wire: every answer is a typed refusal, and the server goes on serving."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator

import grpc
import pytest

from kvclient import wire
from kvclient.channel import bearer, channel_options
from kvproto.v1 import store_pb2 as pb
from kvproto.v1.store_pb2_grpc import StoreServiceStub
from kvstore.core.api import PutNote
from kvstore.server.grpc_server import RpcServer
from kvstore.server.service import StoreService
from tests.server.chunks import key, make_blob, make_service
from tests.server.serving import TOKENS, dialing, serving

MAX_BLOB_BYTES = 4 << 20
BLOB = make_blob()
IDENTITY = bearer(TOKENS["alpha"])
METHODS = ("Lookup", "Get", "Put", "Delete", "Invalidate", "List", "Stats", "Explain")


@pytest.fixture(scope="module")
def service() -> StoreService:
    """One store for all tests: none of them may change what it holds."""
    return make_service(max_blob_bytes=MAX_BLOB_BYTES)


@pytest.fixture(scope="module")
def server(service: StoreService) -> Iterator[RpcServer]:
    """The server under attack."""
    with serving(service) as running:
        yield running


@pytest.fixture
def channel(server: RpcServer) -> Iterator[grpc.Channel]:
    """A plain channel of the attacker's."""
    with grpc.insecure_channel(server.address, channel_options()) as opened:
        yield opened


@pytest.fixture
def stub(channel: grpc.Channel) -> StoreServiceStub:
    """The service as the attacker sees it."""
    return StoreServiceStub(channel)  # type: ignore[no-untyped-call]


@pytest.fixture(autouse=True)
def still_serves(server: RpcServer) -> Iterator[None]:
    """After every attack an honest client is served, nothing was stored and nothing is held."""
    yield
    with dialing(server, "beta") as honest:
        assert honest.put(BLOB, PutNote()).nbytes == len(BLOB)
        assert honest.delete([key(BLOB)]) == 1
    with dialing(server, "alpha") as own:
        assert list(own.entries()) == []
    assert server.budget.lent_bytes == 0


def refusal(call: Callable[[], object]) -> tuple[str, str]:
    """Return status and error class of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = caught.value
    assert isinstance(error, grpc.Call)
    trailing = dict(error.trailing_metadata() or ())
    return error.code().name, str(trailing.get("larder-error", ""))


def note(nbytes: int = len(BLOB), content: bytes = key(BLOB).content, says: PutNote | None = None) -> pb.PutRequest:
    """Return the note of a put of `BLOB`, changed."""
    message = wire.note_to_wire(key(BLOB), nbytes, says or PutNote())
    message.key.content = content
    return pb.PutRequest(note=message)


def piece(data: bytes | bytearray = BLOB) -> pb.PutRequest:
    """Return a piece."""
    return pb.PutRequest(piece=bytes(data))


BAD_PUTS: dict[str, list[pb.PutRequest]] = {
    "nothing": [],
    "no note": [piece()],
    "an empty first message": [pb.PutRequest()],
    "a note and no bytes": [note()],
    "a second note": [note(), note(), piece()],
    "a note behind the bytes": [note(), piece(), note()],
    "an empty piece": [note(), piece(b""), piece()],
    "an empty message among pieces": [note(), pb.PutRequest(), piece()],
    "a piece of more than 1 MiB": [note(2 << 20), piece(bytes((1 << 20) + 1))],
    "too few bytes": [note(), piece(BLOB[:-1])],
    "one byte too many": [note(), piece(), piece(b"x")],
    "more than announced at once": [note(10), piece()],
    "a short key": [note(content=b"short"), piece()],
    "a long key": [note(content=bytes(33)), piece()],
    "a chunk over the limit": [note(MAX_BLOB_BYTES + 1), piece()],
    "the largest length there is": [note(2**64 - 1), piece()],
    "no bytes announced": [note(0)],
    "random bytes": [note(1000), piece(random.Random(1).randbytes(1000))],
    "a recompute time that is no number": [note(says=PutNote(recompute_s=float("nan"))), piece()],
    "a source that is too long": [note(says=PutNote(source="s" * 5000)), piece()],
}


@pytest.mark.parametrize("messages", BAD_PUTS.values(), ids=BAD_PUTS.keys())
def test_a_malformed_put_is_an_invalid_argument(stub: StoreServiceStub, messages: list[pb.PutRequest]) -> None:
    """Truncated, oversized, repeated or out of order."""
    code, name = refusal(lambda: stub.Put(iter(messages), metadata=IDENTITY, timeout=5))
    assert (code, name in ("FormatError", "InvalidInputError")) == ("INVALID_ARGUMENT", True)


def test_a_chunk_of_another_key_than_announced_is_refused(stub: StoreServiceStub) -> None:
    """A writer can't plant a chunk under a key that it is not of."""
    messages = [note(content=bytes(32)), piece()]
    assert refusal(lambda: stub.Put(iter(messages), metadata=IDENTITY, timeout=5)) == ("FAILED_PRECONDITION", "IdentityError")


def test_a_flipped_bit_is_data_loss(stub: StoreServiceStub) -> None:
    """The writer may send it again."""
    bad = bytearray(BLOB)
    bad[-1] ^= 1
    assert refusal(lambda: stub.Put(iter([note(), piece(bad)]), metadata=IDENTITY, timeout=5)) == ("DATA_LOSS", "CorruptError")


@pytest.mark.parametrize(
    "request_",
    [
        pb.LookupRequest(keys=[pb.ChunkKey()]),
        pb.LookupRequest(keys=[pb.ChunkKey(namespace=bytes(32), content=bytes(32), variant=bytes(31))]),
        pb.LookupRequest(keys=[wire.key_to_wire(key(BLOB))], lease_s=float("inf")),
        pb.LookupRequest(keys=[wire.key_to_wire(key(BLOB))], lease_s=-1),
        pb.LookupRequest(keys=[wire.key_to_wire(key(BLOB))] * (wire.MAX_KEYS + 1)),
    ],
    ids=["empty key", "short variant", "endless lease", "negative lease", "too many keys"],
)
def test_a_malformed_lookup_is_an_invalid_argument(stub: StoreServiceStub, request_: pb.LookupRequest) -> None:
    """Bad keys, leases and counts."""
    assert refusal(lambda: stub.Lookup(request_, metadata=IDENTITY, timeout=5))[0] == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "request_",
    [pb.InvalidateRequest(), pb.InvalidateRequest(tenant=False), pb.InvalidateRequest(model="zz")],
    ids=["no scope", "tenant false", "a model that is none"],
)
def test_an_invalidation_of_nothing_is_an_invalid_argument(stub: StoreServiceStub, request_: pb.InvalidateRequest) -> None:
    """The default of a boolean must not wipe a tenant."""
    assert refusal(lambda: stub.Invalidate(request_, metadata=IDENTITY, timeout=5))[0] == "INVALID_ARGUMENT"


def raw_call(channel: grpc.Channel, method: str, messages: Iterable[bytes], metadata: tuple[tuple[str, str], ...]) -> None:
    """Call a method with bytes of the attacker's choice and read its answer to the end."""
    call: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"/kvproto.v1.StoreService/{method}")
    for _ in call(iter(messages), metadata=metadata, timeout=5):
        pass


BAD_IDENTITIES: dict[str, tuple[tuple[str, str], ...]] = {
    "none": (),
    "an unknown token": bearer("x" * 20),
    "an empty token": bearer(""),
    "another scheme": (("authorization", f"Basic {TOKENS['alpha']}"),),
    "a token alone": (("authorization", TOKENS["alpha"]),),
    "two tokens": (*bearer(TOKENS["alpha"]), *bearer(TOKENS["beta"])),
    "the start of a token": bearer(TOKENS["alpha"][:-1]),
    "a long token": bearer("x" * 4000),
    "a claimed tenant": (("tenant", "alpha"), ("x-tenant", "alpha")),
}


@pytest.mark.parametrize("metadata", BAD_IDENTITIES.values(), ids=BAD_IDENTITIES.keys())
@pytest.mark.parametrize("method", METHODS)
def test_every_method_refuses_a_caller_without_identity(channel: grpc.Channel, method: str, metadata: tuple[tuple[str, str], ...]) -> None:
    """The tenant is the token's; nothing else that the caller says counts."""
    code, name = refusal(lambda: raw_call(channel, method, [b""], metadata))
    assert (code, name) == ("UNAUTHENTICATED", "AuthError")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_refuses_bytes_that_are_no_message(channel: grpc.Channel, method: str) -> None:
    """A field of wire type 7 does not exist."""
    assert refusal(lambda: raw_call(channel, method, [b"\xff" * 50], IDENTITY)) == ("INVALID_ARGUMENT", "FormatError")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_refuses_a_call_without_a_message(channel: grpc.Channel, method: str) -> None:
    """A closed stream is not a request."""
    assert refusal(lambda: raw_call(channel, method, [], IDENTITY)) == ("INVALID_ARGUMENT", "FormatError")


def test_a_message_over_eight_mib_is_refused_by_its_length(channel: grpc.Channel) -> None:
    """Before it is held in memory."""
    assert refusal(lambda: raw_call(channel, "Lookup", [bytes(9 << 20)], IDENTITY))[0] == "RESOURCE_EXHAUSTED"


def test_an_unknown_method_is_unimplemented(channel: grpc.Channel) -> None:
    """The next version's client learns that it is."""
    assert refusal(lambda: raw_call(channel, "Teleport", [b""], IDENTITY))[0] == "UNIMPLEMENTED"


def outcome(channel: grpc.Channel, method: str, data: bytes) -> str:
    """Return the status of a call with one message."""
    try:
        raw_call(channel, method, [data], IDENTITY)
    except grpc.RpcError as error:
        return error.code().name if isinstance(error, grpc.Call) else "UNKNOWN"
    return "OK"


def test_random_bytes_on_every_method_end_in_an_answer_or_a_typed_refusal(channel: grpc.Channel) -> None:
    """Seeded mutations of real messages, and plain noise."""
    rng = random.Random(7)
    seeds = [pb.LookupRequest(keys=[wire.key_to_wire(key(BLOB))], lease_s=1.0).SerializeToString(), note().SerializeToString()]
    for _ in range(400):
        data = bytearray(rng.choice([*seeds, rng.randbytes(rng.randrange(64))]))
        for _ in range(rng.randrange(1, 4) if data else 0):
            data[rng.randrange(len(data))] = rng.randrange(256)
        method = rng.choice([m for m in METHODS if m != "Invalidate"])
        assert outcome(channel, method, bytes(data)) in ("OK", "INVALID_ARGUMENT"), (method, bytes(data))


def test_a_defect_of_ours_shows_nothing_of_the_inside(
    stub: StoreServiceStub, service: StoreService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller gets INTERNAL and a sentence; the traceback is in the log."""

    def fail() -> None:
        raise ZeroDivisionError("the secret is 42")

    monkeypatch.setattr(service.store, "tier_stats", fail)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Stats(pb.StatsRequest(), metadata=IDENTITY, timeout=5)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "42" not in (caught.value.details() or "")
    assert "the secret is 42" in caplog.text
