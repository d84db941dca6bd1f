"""Open the pages of a process beside its server."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from kvclient.channel import is_loopback
from kvclient.traces import export_traces
from kvstore.server.access.auth import Authenticate
from kvstore.server.access.certificates import Certificates
from kvstore.server.grpc_server import RpcServer
from kvstore.server.observe.admins import Admins
from kvstore.server.observe.observatory import Observatory
from kvstore.server.observe.source import Source
from kvstore.server.observe.web import WebServer

logger = logging.getLogger(__name__)


@contextmanager
def observing(part: str, server: RpcServer, sources: Sequence[Source], authenticate: Authenticate) -> Iterator[str]:
    """Serve metrics, health and console of a running server within the block; yield in words where they are, "" where no address is set.

    Sends traces too, where OpenTelemetry's variables say where to.
    """
    send_rest = export_traces(f"larder-{part}")
    try:
        with _pages(part, server, sources, authenticate) as where:
            yield where
    finally:
        send_rest()


@contextmanager
def _pages(part: str, server: RpcServer, sources: Sequence[Source], authenticate: Authenticate) -> Iterator[str]:
    address, tls = server.config.metrics_address, server.config.tls
    if not address:
        yield ""
        return
    observatory = Observatory(part, sources, lambda: server.is_serving, address, Admins(authenticate, server.audit))
    # Scrapers and browsers have no certificate of ours, so none is asked for.
    secured = Certificates(replace(tls, client_ca="")).context if tls.cert and not is_loopback(address) else None
    if not is_loopback(address) and secured is None:
        logger.warning("%s serves metrics as plain text to other machines: allow_plaintext is set", address)
    web = WebServer(address, observatory.routes(), secured, observatory.history.tick)
    try:
        yield f", console at {web.url}/console"
    finally:
        web.close()
