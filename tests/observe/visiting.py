"""Reading the pages of a server as Prometheus and browsers do."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from kvstore.server.grpc_server import RpcServer
from kvstore.server.observe.observatory import Observatory
from kvstore.server.observe.server_source import ServerSource
from kvstore.server.observe.store_source import StoreSource
from kvstore.server.observe.web import WebServer
from kvstore.server.service import StoreService

LOCAL = "127.0.0.1:0"


@dataclass(frozen=True)
class Answer:
    """What a server said."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def samples(self) -> list[tuple[str, dict[str, str], float]]:
        """The samples of an exposition, name, labels and value, as the official parser reads them."""
        families = text_string_to_metric_families(self.body.decode())
        return [(each.name, each.labels, each.value) for family in families for each in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """Return the value of the one sample with this name and exactly these labels."""
        (value,) = [value for found, told, value in self.samples if (found, told) == (name, labels)]
        return value

    @property
    def json(self) -> Any:
        """The document."""
        return json.loads(self.body)


def get(url: str, method: str = "GET", **headers: str) -> Answer:
    """Ask for a page; an error is an answer too, and redirections are not followed."""
    request = urllib.request.Request(url, method=method, headers={name.replace("_", "-"): value for name, value in headers.items()})
    opener = urllib.request.build_opener(_Stay)
    try:
        with opener.open(request, timeout=10) as answer:
            return Answer(answer.status, dict(answer.headers), answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, dict(error.headers), error.read())


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows nothing."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Refuse."""


@contextmanager
def pages(
    server: RpcServer, service: StoreService, address: str = LOCAL, may_watch: Any = lambda _: False, most_tenants: int = 8
) -> Iterator[str]:
    """Serve what can be seen of a store, as if on `address`, and yield where."""
    sources = [StoreSource(service, most_tenants), ServerSource(server, service.lane_calls)]
    observatory = Observatory("store", sources, lambda: server.is_serving, address, may_watch)
    web = WebServer(LOCAL, observatory.routes(), None, observatory.history.tick)
    try:
        yield web.url
    finally:
        web.close()
