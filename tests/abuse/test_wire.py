"""Hostile input on the wire: every answer is a typed refusal, and the server goes on serving."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import grpc
import pytest

from kvclient import wire
from kvclient.channel import bearer, channel_options
from kvclient.lanes.frames import pack_keys, pack_put, sealed
from kvclient.lanes.grpc_lane import FETCH, GET, PUT, STORE
from kvproto.v1 import store_pb2 as pb
from kvproto.v1.store_pb2_grpc import StoreServiceStub
from kvstore.core.api import PutNote
from kvstore.server.grpc_server import RpcServer
from kvstore.server.service import StoreService
from tests.server.chunks import key, make_blob, make_service
from tests.server.raw import Put, body_of, head_of, header_of, pieces_of, put_on
from tests.server.serving import TOKENS, dialing, serving

MAX_BLOB_BYTES = 4 << 20
BLOB = make_blob()
IDENTITY = bearer(TOKENS["alpha"])
HEAD, BODY = head_of(BLOB), body_of(BLOB)
UNSEALED = HEAD[:-4]
STORE_METHODS = ("Lookup", "OpenLane", "Scrub", "Delete", "Invalidate", "List", "Stats", "Explain")
METHODS = (*(f"/kvproto.v1.StoreService/{name}" for name in STORE_METHODS), FETCH, GET, STORE, PUT)


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


@pytest.fixture
def put(channel: grpc.Channel) -> Put:
    """The method that takes chunks as the attacker sees it."""
    return put_on(channel)


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


def claiming(nbytes: int) -> bytes:
    """Return the head of a put whose header says that the chunk has `nbytes`."""
    header = header_of(BLOB)
    return pack_put(PutNote(), header[:16] + nbytes.to_bytes(8, "little") + header[24:])


def torn(at: int) -> bytes:
    """Return the head of a put without the bytes behind `at`, sealed as an honest one."""
    return sealed(UNSEALED[:at])


LARGE = make_blob(part_nbytes=1 << 20)
BAD_PUTS: dict[str, list[bytes]] = {
    "nothing": [],
    "an empty first message": [b"", HEAD, BODY],
    "bytes without a note": [sealed(BODY)],
    "a note without a header": [pack_put(PutNote(), b""), bytes(BLOB)],
    "a header that is noise": [pack_put(PutNote(), random.Random(2).randbytes(len(header_of(BLOB)))), BODY],
    "a header without its manifest": [pack_put(PutNote(), header_of(BLOB)[:64]), BODY],
    "a header and bytes behind it": [pack_put(PutNote(), bytes(BLOB[:-1])), bytes(BLOB[-1:])],
    "a note that is torn": [torn(10), BODY],
    "a note whose header is torn": [torn(len(UNSEALED) - 1), BODY],
    "a note and a byte": [sealed(UNSEALED + b"x"), BODY],
    "a source that is not UTF-8": [sealed(head_of(BLOB, PutNote(source="aaaa"))[:-4].replace(b"aaaa", b"\xff\xfe\xfd\xfc")), BODY],
    "a note and no bytes": [HEAD],
    "a second note": [HEAD, HEAD, BODY],
    "a note behind the bytes": [HEAD, BODY, HEAD],
    "an empty piece": [HEAD, b"", BODY],
    "an empty message among pieces": [HEAD, BODY[:100], b"", BODY[100:]],
    "an empty message at the end": [HEAD, BODY, b""],
    "a piece of more than 1 MiB": [head_of(LARGE), body_of(LARGE)[: (1 << 20) + 1]],
    "too few bytes": [HEAD, BODY[:-1]],
    "one byte too many": [HEAD, BODY, b"x"],
    "more than announced at once": [HEAD, BODY + b"x"],
    "a chunk over the limit": [head_of(make_blob(part_nbytes=MAX_BLOB_BYTES // 3 + 1))],
    "the largest length there is": [claiming(2**64 - 1), BODY],
    "no bytes announced": [claiming(0)],
    "a recompute time that is no number": [head_of(BLOB, PutNote(recompute_s=float("nan"))), BODY],
    "a source that is too long": [head_of(BLOB, PutNote(source="s" * 5000)), BODY],
}


@pytest.mark.parametrize("messages", BAD_PUTS.values(), ids=BAD_PUTS.keys())
def test_a_malformed_put_is_an_invalid_argument(put: Put, messages: list[bytes]) -> None:
    """Truncated, oversized, repeated or out of order."""
    code, name = refusal(lambda: put(iter(messages), metadata=IDENTITY, timeout=5))
    assert (code, name in ("FormatError", "InvalidInputError")) == ("INVALID_ARGUMENT", True)


def test_a_flipped_bit_of_a_head_is_data_loss(put: Put) -> None:
    """What the writer says of a chunk, such as its source, is in no digest of the chunk."""
    for at in range(len(HEAD)):
        bad = bytearray(HEAD)
        bad[at] ^= 1 << (at % 8)
        assert refusal(partial(put, iter([bytes(bad), BODY]), metadata=IDENTITY, timeout=5)) == ("DATA_LOSS", "CorruptError"), at


@pytest.mark.parametrize("at", [-1, 0, 100], ids=["last byte", "first part", "within"])
def test_a_flipped_bit_is_data_loss(put: Put, at: int) -> None:
    """The writer may send it again."""
    bad = bytearray(BODY)
    bad[at] ^= 1
    messages = [HEAD, *pieces_of(bad, 1000)]
    assert refusal(lambda: put(iter(messages), metadata=IDENTITY, timeout=5)) == ("DATA_LOSS", "CorruptError")


def test_a_flipped_bit_of_the_header_is_refused(put: Put) -> None:
    """A writer can't plant a chunk under a key that it is not of: the key is what the digested manifest says."""
    for at in range(0, len(header_of(BLOB)), 7):
        bad = bytearray(header_of(BLOB))
        bad[at] ^= 1 << (at % 8)
        code, _ = refusal(partial(put, iter([pack_put(PutNote(), bad), BODY]), metadata=IDENTITY, timeout=5))
        assert code in ("DATA_LOSS", "INVALID_ARGUMENT"), at


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
    call: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(method)
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
    """A field of wire type 7 does not exist; a message of the lanes ends with a sum of its bits."""
    refused = ("DATA_LOSS", "CorruptError") if method in (FETCH, GET, PUT, STORE) else ("INVALID_ARGUMENT", "FormatError")
    assert refusal(lambda: raw_call(channel, method, [b"\xff" * 50], IDENTITY)) == refused


@pytest.mark.parametrize("method", METHODS)
def test_every_method_refuses_a_call_without_a_message(channel: grpc.Channel, method: str) -> None:
    """A closed stream is not a request."""
    assert refusal(lambda: raw_call(channel, method, [], IDENTITY)) == ("INVALID_ARGUMENT", "FormatError")


def test_a_message_over_eight_mib_is_refused_by_its_length(channel: grpc.Channel) -> None:
    """Before it is held in memory."""
    assert refusal(lambda: raw_call(channel, METHODS[0], [bytes(9 << 20)], IDENTITY))[0] == "RESOURCE_EXHAUSTED"


def test_an_unknown_method_is_unimplemented(channel: grpc.Channel) -> None:
    """The next version's client learns that it is."""
    assert refusal(lambda: raw_call(channel, "/kvproto.v1.StoreService/Teleport", [b""], IDENTITY))[0] == "UNIMPLEMENTED"


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
    seeds = [pb.LookupRequest(keys=[wire.key_to_wire(key(BLOB))], lease_s=1.0).SerializeToString(), HEAD, pack_keys([key(BLOB)])]
    for _ in range(400):
        data = bytearray(rng.choice([*seeds, rng.randbytes(rng.randrange(64))]))
        for _ in range(rng.randrange(1, 4) if data else 0):
            data[rng.randrange(len(data))] = rng.randrange(256)
        method = rng.choice([m for m in METHODS if not m.endswith("Invalidate")])
        assert outcome(channel, method, bytes(data)) in ("OK", "INVALID_ARGUMENT", "DATA_LOSS"), (method, bytes(data))


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
