"""The pages of a running store: metrics that add up, health that follows the server, numbers only for those who may see them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvstore.core.api import PutNote
from kvstore.core.errors import AuthError, ConfigError
from kvstore.core.tokens import Credential
from kvstore.server.access.audit import AuditLog
from kvstore.server.access.auth import Identity, Metadata, TokenAuthenticator, known_tokens
from kvstore.server.config import ServerConfig
from kvstore.server.grpc_server import RpcServer
from kvstore.server.observe import names
from kvstore.server.observe.admins import KNOWN_FOR_S, Admins
from kvstore.server.observe.opening import observing
from kvstore.server.observe.web import Visitor
from kvstore.server.service import StoreService
from tests.observe.visiting import get, pages
from tests.server.audit_file import lines_of
from tests.server.chunks import key, make_blob, make_service
from tests.server.serving import LOOPBACK, dialing, serving

ADMIN, OTHER_ADMIN, USER = "admin-token-0123456789", "other-token-0123456789", "user-token-0123456789"


@pytest.fixture
def service() -> StoreService:
    """Return a store in memory; `serving` closes it."""
    return make_service()


@pytest.fixture
def server(service: StoreService) -> Iterator[RpcServer]:
    """Serve it."""
    with serving(service) as server:
        yield server


def _use(server: RpcServer, lane: str) -> int:
    """Put a chunk, read it, miss another; return its bytes."""
    blob = make_blob(1, part_nbytes=20_000)
    with dialing(server, lane=lane) as store:  # type: ignore[arg-type]
        store.put(blob, PutNote())
        store.lookup([key(blob), key(make_blob(2))])
        reader = store.get(key(blob))
        assert reader is not None
        for index in range(len(reader.manifest.parts)):
            reader.part(index)
        reader.close()
        assert store.get(key(make_blob(3))) is None
    return len(blob)


@pytest.mark.parametrize("lane", ["grpc", "tcp"])
def test_a_chunk_that_was_put_and_read_is_in_the_metrics(server: RpcServer, service: StoreService, lane: str) -> None:
    """By tenant, by outcome, by tier and by lane."""
    nbytes = _use(server, lane)
    with pages(server, service) as url:
        metrics = get(f"{url}/metrics")
    for call in ("lookup", "get"):
        assert metrics.value("larder_chunk_requests_total", call=call, tenant="alpha", outcome="hit") == 1
        assert metrics.value("larder_chunk_requests_total", call=call, tenant="alpha", outcome="never_stored") == 1
    for direction in ("in", "out"):
        assert metrics.value("larder_tenant_bytes_total", tenant="alpha", direction=direction) == nbytes
    assert metrics.value("larder_lane_bytes_total", lane=lane, direction="sent") == nbytes
    # Over a socket, the bytes that say who put it are not counted as the chunk's.
    assert metrics.value("larder_lane_bytes_total", lane=lane, direction="received") == pytest.approx(nbytes, abs=2000)
    assert metrics.value("larder_tier_reads_total", tier="memory", outcome="hit") == 1
    assert metrics.value("larder_tier_up", tier="memory") == 1


def test_every_metric_is_exported_by_a_store_that_was_used(server: RpcServer, service: StoreService) -> None:
    """A panel or alert over a name that is never exported shows nothing for ever."""
    _use(server, "tcp")
    with pages(server, service) as url:
        exported = {name for name, _, _ in get(f"{url}/metrics").samples}
    for metric in (*names.SERVER_METRICS, *names.STORE_METRICS):
        assert exported & {metric.name, f"{metric.name}_bucket"}, metric.name
    assert "process_resident_memory_bytes" in exported


def test_calls_are_counted_with_how_they_ended(server: RpcServer, service: StoreService) -> None:
    """By lane, name and status."""
    _use(server, "tcp")
    with pages(server, service) as url:
        metrics = get(f"{url}/metrics")
    assert metrics.value("larder_calls_total", lane="grpc", call="Lookup", code="OK") == 1
    assert metrics.value("larder_calls_total", lane="tcp", call="put", code="OK") == 1
    assert metrics.value("larder_calls_total", lane="tcp", call="get", code="OK") == 2
    assert metrics.value("larder_call_seconds_count", lane="tcp", call="get") == 2
    assert metrics.value("larder_calls_running", lane="grpc") == 0


def test_tenants_beyond_the_limit_are_counted_together(server: RpcServer, service: StoreService) -> None:
    """A label that callers choose must not grow without end; the sums stay right."""
    for name in ("alpha", "beta", "gamma", "delta"):
        service.bind(name).lookup([key(make_blob(1))])
    with pages(server, service, most_tenants=2) as url:
        samples = get(f"{url}/metrics").samples
    asked = {
        labels["tenant"]: value
        for name, labels, value in samples
        if name == "larder_chunk_requests_total" and labels["outcome"] == "never_stored"
    }
    assert len(asked) == 3
    assert asked["other"] == 2


def test_health_follows_the_server(service: StoreService) -> None:
    """A draining server is alive and not ready."""
    with serving(service) as server, pages(server, service) as url:
        assert [get(url + path).status for path in ("/healthz", "/readyz")] == [200, 200]
        server.drain()
        assert [get(url + path).status for path in ("/healthz", "/readyz")] == [200, 503]


def test_the_console_is_one_page_and_its_numbers(server: RpcServer, service: StoreService) -> None:
    """The root leads to it."""
    with pages(server, service) as url:
        _use(server, "tcp")
        assert get(url).headers["Location"] == "/console"
        assert b"<script src" in get(f"{url}/console").body
        numbers = get(f"{url}/console.json").json
    assert numbers["store"]["outcomes"] == {"hit": 2, "never_stored": 2}
    assert numbers["store"]["tenants"][0]["tenant"] == "alpha"
    assert [row["reason"] for row in numbers["store"]["misses"]] == ["never_stored", "never_stored"]
    assert sum(step["store.hits"] for step in numbers["history"]) == 2


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "169.254.1.1:7430", ""])
@pytest.mark.parametrize("path", ["/metrics", "/console.json"])
def test_a_name_that_was_led_to_this_machine_shows_nothing(server: RpcServer, service: StoreService, host: str, path: str) -> None:
    """A page of another site could otherwise read the console through its visitor's browser."""
    with pages(server, service) as url:
        assert get(url + path, Host=host).status == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:1234", "127.0.0.1", "127.0.0.1:7430", "[::1]:7430"])
def test_the_names_of_this_machine_are_let_in(server: RpcServer, service: StoreService, host: str) -> None:
    """As a tunnel to a pod has them."""
    with pages(server, service) as url:
        assert get(f"{url}/console.json", Host=host).status == 200


def test_off_loopback_the_numbers_are_for_admins(server: RpcServer, service: StoreService, tmp_path: Path) -> None:
    """They name tenants. The page itself says nothing, and metrics are for whoever can reach the port. Who asks is noted."""
    known = known_tokens([Credential("ops", ADMIN, is_admin=True), Credential("alpha", USER)])
    may_watch = Admins(TokenAuthenticator(lambda: known), AuditLog(tmp_path / "audit"))
    with pages(server, service, "0.0.0.0:7430", may_watch) as url:
        asked = [get(f"{url}/console.json", Authorization=f"Bearer {token}").status for token in (ADMIN, USER, "guess")]
        assert asked == [200, 401, 401]
        assert get(f"{url}/console.json").status == 401
        assert get(f"{url}/console").status == get(f"{url}/metrics").status == 200
    lines = lines_of(tmp_path / "audit")
    assert [(line["event"], line["call"], line["outcome"]) for line in lines] == [
        ("admin", "console", "OK"),
        ("refused", "console", "PERMISSION_DENIED"),
        ("refused", "console", "UNAUTHENTICATED"),
    ]
    assert str(lines[0]["peer"]).startswith("ipv4:127.0.0.1:")


def test_an_admin_who_goes_on_looking_leaves_a_line_now_and_then(tmp_path: Path) -> None:
    """An open page asks every few seconds; another admin, and another address, are news."""
    known = known_tokens([Credential("ops", ADMIN, is_admin=True), Credential("dev", OTHER_ADMIN, is_admin=True)])
    now_s = [0.0]
    may_watch = Admins(TokenAuthenticator(lambda: known), AuditLog(tmp_path / "audit"), clock=lambda: now_s[0])
    here, there = Visitor("h", f"Bearer {ADMIN}", "ipv4:192.0.2.1:50001"), Visitor("h", f"Bearer {ADMIN}", "ipv4:192.0.2.2:50001")
    for visitor in (here, replace(here, peer="ipv4:192.0.2.1:50002"), there, replace(here, authorization=f"Bearer {OTHER_ADMIN}")):
        assert may_watch(visitor)
    now_s[0] = KNOWN_FOR_S - 1
    assert may_watch(here)
    now_s[0] = KNOWN_FOR_S + 1
    assert may_watch(here)
    told = [(line["tenant"], line["peer"]) for line in lines_of(tmp_path / "audit")]
    assert told == [("ops", here.peer), ("ops", there.peer), ("dev", here.peer), ("ops", here.peer)]


def test_pages_off_loopback_need_what_the_server_needs() -> None:
    """Plain text to other machines is said, never assumed."""
    with pytest.raises(ConfigError, match="metrics_address"):
        ServerConfig(metrics_address="0.0.0.0:7430")
    ServerConfig(metrics_address="0.0.0.0:7430", allow_plaintext=True)


def test_a_server_without_an_address_for_them_has_no_pages(service: StoreService) -> None:
    """And says nothing of them."""
    with serving(service, replace(LOOPBACK, metrics_address="")) as server, observing("store", server, [], nobody) as where:
        assert where == ""


def test_a_server_says_where_its_pages_are(server: RpcServer) -> None:
    """A free port is of no use to who does not know it."""
    with observing("store", server, [], nobody) as where:
        assert get(where.split()[-1]).status == 200


def nobody(metadata: Metadata) -> Identity:
    """Know nobody."""
    raise AuthError("no")
