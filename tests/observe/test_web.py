"""The HTTP server beside a store: what it answers, to whom, and what visitors can't make it do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from kvstore.core.errors import ConfigError
from kvstore.server.observe.web import MOST_VISITORS, Page, Visitor, WebServer
from tests.observe.visiting import get


def _fail(visitor: Visitor) -> Page:
    raise ZeroDivisionError("a bug that names a secret")


@pytest.fixture
def web() -> Iterator[WebServer]:
    """Serve a page that works and one that does not."""
    server = WebServer("127.0.0.1:0", {"/page": lambda _: Page(b"hello"), "/broken": _fail}, None, lambda: None)
    yield server
    server.close()


def test_a_page_is_served_with_a_policy_that_allows_nothing_from_elsewhere(web: WebServer) -> None:
    """No script, style or connection but the server's own."""
    answer = get(f"{web.url}/page?refresh=1")
    assert (answer.status, answer.body) == (200, b"hello")
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none';")
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_head_answers_without_a_body(web: WebServer) -> None:
    """Health checks of load balancers use it."""
    answer = get(f"{web.url}/page", method="HEAD")
    assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", "5")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_changed(web: WebServer, method: str) -> None:
    """There is no method that does."""
    assert get(f"{web.url}/page", method=method).status == 501


@pytest.mark.parametrize("path", ["/", "/../../etc/passwd", "/page/", "/%70age"])
def test_what_is_no_page_is_not_found(web: WebServer, path: str) -> None:
    """Paths are names in a dictionary, never files."""
    assert get(web.url + path).status == 404


def test_a_defect_says_nothing_of_the_inside(web: WebServer, caplog: pytest.LogCaptureFixture) -> None:
    """The log keeps the traceback."""
    answer = get(f"{web.url}/broken")
    assert answer.status == 500
    assert b"secret" not in answer.body
    assert "ZeroDivisionError" in caplog.text


def test_an_address_that_is_taken_is_a_configuration_error(web: WebServer) -> None:
    """It names the setting."""
    with pytest.raises(ConfigError, match="metrics_address"):
        WebServer(web.url.removeprefix("http://"), {}, None, lambda: None)


def test_visitors_beyond_the_last_seat_are_sent_away_and_come_in_when_one_is_free(web: WebServer) -> None:
    """Silent connections hold threads, so they are counted."""
    host, _, port = web.url.removeprefix("http://").rpartition(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(MOST_VISITORS)]
    with socket.create_connection((host, int(port))) as late:
        late.settimeout(5)
        assert late.recv(1) == b""
    for each in silent:
        each.close()
    assert _eventually_served(f"{web.url}/page")


def _eventually_served(url: str) -> bool:
    """Ask until the threads of those who left are free."""
    for _ in range(100):
        try:
            if get(url).status == 200:
                return True
        except OSError:
            threading.Event().wait(0.05)
    return False


def test_bytes_that_are_no_http_leave_the_server_serving(web: WebServer) -> None:
    """A TLS client on a plain port, for example."""
    host, _, port = web.url.removeprefix("http://").rpartition(":")
    for noise in (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"\x00" * 70_000):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(noise)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    assert get(f"{web.url}/page").status == 200
