"""A small HTTP server for machines and people who watch: GET only, a few threads, and nothing that changes anything."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from kvstore.core.errors import ConfigError
from kvstore.server.peer import peer_of

logger = logging.getLogger(__name__)

MOST_VISITORS = 16
PATIENCE_S = 5.0
_TICK_S = 0.5
_SAFE = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Page:
    """An answer."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Visitor:
    """What a page may know of who asks: the Host and Authorization headers, and the address as gRPC spells it."""

    host: str
    authorization: str
    peer: str


Route = Callable[[Visitor], Page]
_LOST = Page(b"not found; there are /console, /metrics, /healthz and /readyz\n", status=404)
_BROKEN = Page(b"the server failed; its log says why\n", status=500)


Secure = Callable[[], ssl.SSLContext]


class WebServer:
    """Serves routes by path until it is closed; what its visitors can make it hold is bounded.

    Parameters
    ----------
    address : str
        host:port; port 0 takes a free one. One that is taken raises ConfigError.
    routes : mapping
        From a path to what answers it.
    tls : callable or None
        Returns the context that wraps a connection which is accepted now.
    tick : callable
        Called every half second.
    """

    def __init__(self, address: str, routes: Mapping[str, Route], tls: Secure | None, tick: Callable[[], None]) -> None:
        host, _, port = address.rpartition(":")
        self._scheme, self._host = "https" if tls else "http", host
        try:
            self._http = _Http((host.strip("[]"), int(port)), routes, tls, tick)
        except (OSError, ValueError, OverflowError) as error:
            raise ConfigError(f"server.metrics_address {address} can't be bound: {error}") from error
        self._thread = threading.Thread(target=self._http.serve_forever, args=(_TICK_S,), name="web", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it is, with the port that was bound."""
        return f"{self._scheme}://{self._host}:{self._http.server_address[1]}"

    def close(self) -> None:
        """Stop serving."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(PATIENCE_S)


class _Http(ThreadingHTTPServer):
    """Answers each visitor on a thread; refuses those beyond MOST_VISITORS."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, place: tuple[str, int], routes: Mapping[str, Route], tls: Secure | None, tick: Callable[[], None]) -> None:
        self.address_family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        self.routes = routes
        self._tls, self._tick = tls, tick
        self._seats = threading.BoundedSemaphore(MOST_VISITORS)
        super().__init__(place, _Visit)

    def service_actions(self) -> None:
        """Tick; called between visitors."""
        self._tick()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin to serve a visitor, if there is room."""
        if not self._seats.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._seats.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a visitor on a thread of its own."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._seats.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Wrap the connection in TLS where there is any, and answer."""
        request.settimeout(PATIENCE_S)
        if self._tls is None:
            super().finish_request(request, client_address)
            return
        with self._tls().wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Note that a visitor went away, or never spoke HTTP; that is no error of ours."""
        logger.debug("a visitor of the web page went away", exc_info=True)


class _Visit(BaseHTTPRequestHandler):
    """One request; the connection is closed behind it."""

    timeout = PATIENCE_S
    server_version = "larder"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer with a page."""
        self._answer(has_body=True)

    def do_HEAD(self) -> None:
        """Answer with a page's headers."""
        self._answer(has_body=False)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing for each scrape."""

    def _answer(self, has_body: bool) -> None:
        page = self._page()
        self.send_response(page.status)
        body = {"Content-Type": page.content_type, "Content-Length": str(len(page.body))}
        for name, value in {**_SAFE, **body, **page.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if has_body:
            self.wfile.write(page.body)

    def _page(self) -> Page:
        """Find the route and call it; a defect of ours is a line in the log and says nothing of the inside."""
        route = self.server.routes.get(self.path.partition("?")[0])  # type: ignore[attr-defined]
        if route is None:
            return _LOST
        host, authorization = (self.headers.get(name, "") for name in ("Host", "Authorization"))
        try:
            page: Page = route(Visitor(host, authorization, peer_of(self.connection)))
            return page
        except Exception:
            logger.exception("%s failed", self.path.partition("?")[0])
            return _BROKEN
