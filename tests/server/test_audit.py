"""The audit log, and the roles that it watches."""

from __future__ import annotations

import json
import logging
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from kvclient.channel import bearer
from kvclient.lanes.frames import Kind, pack_frame, parse_error
from kvclient.lanes.socket_frames import SocketFrames
from kvclient.remote import RemoteStore
from kvclient.retry import Retry
from kvproto.v1 import store_pb2 as pb
from kvproto.v1.store_pb2_grpc import StoreServiceStub
from kvstore.core.api import PutNote, Scope
from kvstore.core.errors import AuthError, ForbiddenError
from kvstore.core.tokens import Credential
from kvstore.server.access import audit as audit_module
from kvstore.server.access.audit import AuditLog
from kvstore.server.access.auth import Identity, TokenAuthenticator, known_tokens
from kvstore.server.access.jwt_tokens import JwtVerifier
from kvstore.server.config import LanesConfig, ServerConfig
from kvstore.server.grpc_server import RpcServer
from kvstore.server.store_servicer import register_store
from tests.lanes.raw import connect, doors_of, soon, until
from tests.server.audit_file import lines_of
from tests.server.chunks import key, make_blob, make_service
from tests.server.issuer import make_token, write_jwks

USER, ADMIN = "a-token-of-a-user-0123", "a-token-of-an-admin-0123"
BLOB = make_blob()
ROOT = Identity("alpha", "token on line 3", is_admin=True)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The audit file."""
    return tmp_path / "audit.jsonl"


@pytest.fixture
def server(tmp_path: Path, file: Path) -> Iterator[RpcServer]:
    """A server for a user and an admin of tenant alpha, and for signed tokens."""
    service = make_service()
    known = known_tokens([Credential("alpha", USER, line=2), Credential("alpha", ADMIN, is_admin=True, line=3)])
    authenticate = TokenAuthenticator(lambda: known, JwtVerifier(write_jwks(tmp_path / "jwks.json", "first")))
    running = RpcServer(ServerConfig(address="127.0.0.1:0", drain_s=0.5, lanes=LanesConfig(shm="on")), AuditLog(file))
    running.start([register_store(service, authenticate, running)])
    yield running
    running.drain()
    service.close()


@pytest.fixture
def dial(server: RpcServer) -> Iterator[Callable[[str], RemoteStore]]:
    """Connect with a token."""
    opened: list[RemoteStore] = []

    def connect_as(token: str) -> RemoteStore:
        opened.append(RemoteStore(server.address, token, timeout_s=5, retry=Retry(attempts=1)))
        return opened[-1]

    yield connect_as
    for remote in opened:
        remote.close()


ADMIN_CALLS: dict[str, tuple[Callable[[RemoteStore], object], str, str]] = {
    "invalidate the tenant": (lambda store: store.invalidate(Scope("tenant")), "Invalidate", "tenant"),
    "invalidate a model": (lambda store: store.invalidate(Scope("model", "ab" * 32)), "Invalidate", "model " + "ab" * 32),
    "stats": (lambda store: store.stats(), "Stats", ""),
}


@pytest.mark.parametrize("name", ADMIN_CALLS)
def test_an_admin_call_of_anybody_else_is_refused_and_noted(dial: Callable[[str], RemoteStore], file: Path, name: str) -> None:
    """With who asked, and for what."""
    act, call, target = ADMIN_CALLS[name]
    with pytest.raises(ForbiddenError, match="role admin"):
        act(dial(USER))
    (line,) = lines_of(file)
    assert (line["tenant"], line["subject"], line["call"]) == ("alpha", "token on line 2", call)
    assert (line["event"], line["outcome"]) == ("refused", "PERMISSION_DENIED")
    assert str(line["reason"]).startswith(f"{call} {target}".strip())


@pytest.mark.parametrize("name", ADMIN_CALLS)
def test_an_admin_call_of_an_admin_is_made_and_noted(dial: Callable[[str], RemoteStore], file: Path, name: str) -> None:
    """Every one of them, with the address that it came from."""
    act, call, _ = ADMIN_CALLS[name]
    act(dial(ADMIN))
    (line,) = lines_of(file)
    assert (line["event"], line["call"], line["outcome"], line["subject"]) == ("admin", call, "OK", "token on line 3")
    assert str(line["peer"]).startswith("ipv4:127.0.0.1:")


def test_an_admin_call_that_fails_is_noted_with_its_status(dial: Callable[[str], RemoteStore], file: Path) -> None:
    """An attempt is worth a line, too."""
    with pytest.raises(Exception, match="64 lower-case hex"):
        dial(ADMIN).invalidate(Scope("model", "unknown"))
    assert lines_of(file)[0]["outcome"] == "INVALID_ARGUMENT"


def test_what_a_tenant_does_with_its_own_chunks_takes_no_admin_and_leaves_no_line(dial: Callable[[str], RemoteStore], file: Path) -> None:
    """An audit log that tells everything tells nothing."""
    store = dial(USER)
    store.put(BLOB, PutNote(source="book"))
    assert store.get(key(BLOB)) is not None
    assert store.explain(key(BLOB)).hit.tier == "memory"
    store.invalidate(Scope("source", "book"))
    store.delete([key(BLOB)])
    assert list(store.entries()) == []
    assert lines_of(file) == []


STRANGERS: dict[str, Callable[[], str]] = {
    "an unknown token": lambda: "a-token-of-nobody-0123",
    "a forged signature": lambda: make_token("stranger", headers={"kid": "first"}),
    "an expired token": lambda: make_token(exp=1),
    "a wrong audience": lambda: make_token(aud="payroll"),
    "an empty token": lambda: "",
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_caller_who_is_refused_is_unauthenticated_and_noted(dial: Callable[[str], RemoteStore], file: Path, kind: str) -> None:
    """The line names call and peer, and quotes no token."""
    token = STRANGERS[kind]()
    with pytest.raises(AuthError):
        dial(token).explain(key(BLOB))
    (line,) = lines_of(file)
    assert (line["event"], line["call"], line["outcome"]) == ("refused", "Explain", "UNAUTHENTICATED")
    assert not token or token not in file.read_text()


def test_a_call_without_a_token_is_unauthenticated_and_noted(server: RpcServer, file: Path) -> None:
    """Or with two of them."""
    with grpc.insecure_channel(server.address) as channel:
        stub = StoreServiceStub(channel)  # type: ignore[no-untyped-call]
        for metadata in ((), (*bearer(USER), *bearer(ADMIN))):
            with pytest.raises(grpc.RpcError) as caught:
                stub.Lookup(pb.LookupRequest(), metadata=metadata, timeout=5)
            assert isinstance(caught.value, grpc.Call)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert [(line["event"], line["outcome"]) for line in lines_of(file)] == [("refused", "UNAUTHENTICATED")] * 2


@pytest.mark.parametrize("lane", ["shm", "tcp"])
def test_a_ticket_that_is_shown_again_is_refused_and_noted(server: RpcServer, file: Path, lane: str) -> None:
    """Whoever overheard one is worth a look."""
    offered = doors_of(server).open_lane(Identity("alpha"))
    for _ in range(2):
        frames = SocketFrames(connect(offered, lane), lane)
        frames.reads_ahead = False
        frames.send(Kind.HELLO, offered.ticket, soon())
        kind, head, _ = frames.receive(soon())
        frames.close()
    assert (kind, parse_error(head).code) == (Kind.ERROR, "UNAUTHENTICATED")
    until(lambda: bool(lines_of(file)))
    assert [(line["event"], line["call"], line["outcome"]) for line in lines_of(file)] == [("refused", f"lane {lane}", "UNAUTHENTICATED")]
    assert offered.ticket.hex() not in file.read_text()


ENDED: dict[str, Callable[[Path], Identity]] = {
    "a JWT that expired": lambda folder: Identity("alpha", expires_s=1.0),
    "a token that was taken out": lambda folder: Identity("alpha", accepted_by=bytes(32)),
    "a JWT whose keys were replaced": lambda folder: Identity("alpha", accepted_by=object()),
}


@pytest.mark.parametrize("kind", ENDED)
@pytest.mark.parametrize("lane", ["shm", "tcp"])
def test_a_connection_ends_with_what_opened_it(server: RpcServer, tmp_path: Path, lane: str, kind: str) -> None:
    """A lane must not outlive an identity; an honest client opens another one."""
    offered = doors_of(server).open_lane(ENDED[kind](tmp_path))
    connection = connect(offered, lane)
    connection.sendall(pack_frame(Kind.HELLO, len(offered.ticket), 0) + offered.ticket)
    until(lambda: doors_of(server).n_connections == 1)
    until(lambda: doors_of(server).n_connections == 0)
    connection.close()


def test_strangers_fill_no_disk(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was left out is counted in the next line."""
    monkeypatch.setattr(audit_module, "REFUSALS_AT_ONCE", 3)
    moment = [100.0]
    audit = AuditLog(file, clock=lambda: moment[0])
    for _ in range(50):
        audit.refused("Lookup", "ipv4:192.0.2.1:1", AuthError("no"))
    moment[0] += 1.0
    audit.refused("Lookup", "ipv4:192.0.2.1:1", AuthError("no"))
    assert [line.get("left_out", 0) for line in lines_of(file)] == [0, 0, 0, 47]


def test_admins_are_never_left_out(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even while strangers knock."""
    monkeypatch.setattr(audit_module, "REFUSALS_AT_ONCE", 1)
    audit = AuditLog(file, clock=lambda: 0.0)
    for _ in range(5):
        audit.refused("Lookup", "peer", AuthError("no"))
        audit.acted(ROOT, "Stats", "", "peer", "OK")
    assert [line["event"] for line in lines_of(file)] == ["refused"] + ["admin"] * 5


def test_the_file_is_its_owners_and_may_be_moved_away(file: Path) -> None:
    """As log rotation does."""
    audit = AuditLog(file)
    audit.acted(ROOT, "Stats", "", "peer", "OK")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.rename(file.with_suffix(".1"))
    audit.acted(ROOT, "Stats", "", "peer", "OK")
    assert len(lines_of(file)) == len(lines_of(file.with_suffix(".1"))) == 1


def test_a_line_that_cannot_be_written_goes_to_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As an error, with all that it says."""
    AuditLog(tmp_path / "missing" / "audit").acted(ROOT, "Stats", "", "peer", "OK")
    assert "No such file" in caplog.text
    assert '"call": "Stats"' in caplog.text


def test_without_a_file_lines_go_to_the_logger(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever collects logs has them."""
    with caplog.at_level(logging.INFO, "larder.audit"):
        AuditLog().acted(ROOT, "Stats", "", "peer", "OK")
    assert json.loads(caplog.messages[0])["subject"] == "token on line 3"


def test_a_target_cannot_forge_a_line(file: Path) -> None:
    """What callers write is one JSON string."""
    AuditLog(file).acted(ROOT, "Invalidate", 'model x"}\n{"event": "admin"', "peer", "OK")
    assert len(lines_of(file)) == 1
