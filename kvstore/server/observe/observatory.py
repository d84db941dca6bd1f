"""What can be seen of a process: metrics for Prometheus, health for a kubelet, a console for people."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from kvclient.channel import is_loopback
from kvstore.server.observe import names
from kvstore.server.observe.families import Families
from kvstore.server.observe.history import History
from kvstore.server.observe.source import Source
from kvstore.server.observe.web import Page, Route, Visitor

_STATIC = {
    "/console": ("console.html", "text/html"),
    "/console.js": ("console.js", "text/javascript"),
    "/console.css": ("console.css", "text/css"),
}
_NOT_YOU = "the console names tenants: open it on the server's own machine, or give the token of an admin\n"

_ANOTHER_NAME = Page(b"this server is on loopback: ask for it by 127.0.0.1 or localhost\n", status=403)

MayWatch = Callable[[Visitor], bool]
"""Tells whether the bearer of an Authorization header may see every tenant."""


class Observatory(Collector):
    """The pages of one process.

    Parameters
    ----------
    part : str
        "store", "worker" or "up".
    sources : sequence of Source
        What there is to see.
    is_ready : callable
        Whether new calls are taken.
    address : str
        Where the pages are served. On loopback the console's numbers are shown without a token, and nothing is shown to who asks by
        another name than a loopback one: a page of another site may have led its own name to this machine.
    may_watch : callable
        Decides for everybody else.
    """

    def __init__(
        self,
        part: str,
        sources: Sequence[Source],
        is_ready: Callable[[], bool],
        address: str,
        may_watch: MayWatch,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._part, self._sources, self._is_ready = part, sources, is_ready
        self._is_local, self._may_watch, self._clock = is_loopback(address), may_watch, clock
        self._started_s = clock()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        self.history = History(self._sums, clock)

    def routes(self) -> Mapping[str, Route]:
        """Return what a WebServer serves."""
        static = {path: _static(name, kind) for path, (name, kind) in _STATIC.items()}
        asked: dict[str, Route] = {
            "/": lambda _: Page(b"", status=302, headers={"Location": "/console"}),
            "/metrics": self._metrics,
            "/healthz": lambda _: Page(b"alive\n"),
            "/readyz": self._ready,
            "/console.json": self._numbers,
        }
        return {path: self._by_name(route) for path, route in {**static, **asked}.items()}

    def describe(self) -> Iterable[Family]:
        """Say nothing before the first scrape."""
        return ()

    def collect(self) -> Iterable[Family]:
        """Yield the families of one scrape."""
        out = Families()
        out.add(names.PROCESS, 1, self._part, version("kv-larder"))
        for source in self._sources:
            source.metrics(out)
        yield from out.export()

    def snapshot(self) -> Mapping[str, Any]:
        """Return everything that the console shows."""
        panels = {source.name: source.panel() for source in self._sources}
        known = {"part": self._part, "version": version("kv-larder"), "now_s": self._clock(), "started_s": self._started_s}
        return {**known, "is_ready": self._is_ready(), "history": self.history.growth(), **panels}

    def _sums(self) -> Mapping[str, float]:
        return {f"{source.name}.{name}": total for source in self._sources for name, total in source.sums().items()}

    def _metrics(self, visitor: Visitor) -> Page:
        return Page(generate_latest(self._registry), CONTENT_TYPE_LATEST)

    def _ready(self, visitor: Visitor) -> Page:
        return Page(b"ready\n") if self._is_ready() else Page(b"draining\n", status=503)

    def _by_name(self, route: Route) -> Route:
        """Return a route that on loopback refuses whoever asks by the name of another machine."""
        if not self._is_local:
            return route
        return lambda visitor: route(visitor) if is_loopback(_with_port(visitor.host)) else _ANOTHER_NAME

    def _numbers(self, visitor: Visitor) -> Page:
        if not self._is_local and not (visitor.authorization and self._may_watch(visitor)):
            return Page(_NOT_YOU.encode(), status=401, headers={"WWW-Authenticate": 'Bearer realm="larder"'})
        return Page(json.dumps(self.snapshot()).encode(), "application/json")


def _with_port(host: str) -> str:
    """Return a Host header with a port."""
    return host if host.rpartition(":")[2].isdigit() else f"{host}:80"


def _static(name: str, kind: str) -> Route:
    """Return the route of a file of this package."""
    body = files("kvstore.server.observe").joinpath("console", name).read_bytes()
    page = Page(body, f"{kind}; charset=utf-8")
    return lambda _: page
