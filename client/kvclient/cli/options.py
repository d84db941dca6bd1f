"""Options that every verb has, and the clients that they describe."""

from __future__ import annotations

import argparse
import math
import os
from functools import cached_property
from types import TracebackType

from kvclient import Larder
from kvclient.channel import ClientTLS, discover_token
from kvclient.cluster.connect import connect_stores
from kvclient.cluster.members import Members
from kvclient.cluster.store import ClusterStore
from kvclient.remote import RemoteStore
from kvclient.traces import export_traces
from kvstore.core.errors import ConfigError, UnsupportedError

CA_VARIABLE, CERT_VARIABLE, KEY_VARIABLE = "LARDER_CA", "LARDER_CERT", "LARDER_KEY"


def common_options(timeout_s: float = 30.0) -> argparse.ArgumentParser:
    """Return a parser to be the parent of a verb's: where the server is, who is calling, --timeout and --json."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("connection and output")
    text = "the server, or workers that share a catalog with commas between them (default: $LARDER_ADDRESS, else 127.0.0.1:7420)"
    group.add_argument("--address", metavar="HOST:PORT", help=text)
    group.add_argument("--token", help="who is calling (default: $LARDER_TOKEN, else the token of a store on this machine)")
    group.add_argument(
        "--ca", metavar="FILE", help='use TLS, with this authority for the server\'s certificate, or "system" (default: $LARDER_CA)'
    )
    group.add_argument("--cert", metavar="FILE", help="this client's certificate, where the server asks for one (default: $LARDER_CERT)")
    group.add_argument("--key", metavar="FILE", help="the certificate's key (default: $LARDER_KEY)")
    group.add_argument("--server-name", default="", metavar="NAME", help="the certificate's name where the address has another")
    group.add_argument("--timeout", metavar="SECONDS", type=seconds, default=timeout_s, help="deadline of each call (default: %(default)g)")
    group.add_argument("--json", action="store_true", help="print one JSON object per line")
    return parser


def seconds(text: str) -> float:
    """Read a duration above 0."""
    return _above_zero(text, "a number of seconds")


def per_second(text: str) -> float:
    """Read a rate above 0."""
    return _above_zero(text, "a rate per second")


def count(text: str) -> int:
    """Read a whole number above 0."""
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _above_zero(text: str, what: str) -> float:
    """Read a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text!r} is not {what} above 0")
    return value


def tls_of(args: argparse.Namespace) -> ClientTLS | None:
    """Return what options and environment say about TLS; None for plain text."""
    ca = args.ca or os.environ.get(CA_VARIABLE, "")
    cert, key = args.cert or os.environ.get(CERT_VARIABLE, ""), args.key or os.environ.get(KEY_VARIABLE, "")
    if not ca:
        if cert or key:
            raise ConfigError(f"a client's certificate needs TLS: give --ca or {CA_VARIABLE} too")
        return None
    return ClientTLS(ca="" if ca == "system" else ca, cert=cert, key=key, server_name=args.server_name)


class Session:
    """The clients of one verb: the worker's, and the store's when it is asked for."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._tls, self._send_spans = tls_of(args), export_traces("larder-cli")
        self._token, self._timeout_s = args.token or "", args.timeout
        self.larder = Larder(args.address, args.token, timeout_s=args.timeout, tls=self._tls)

    @cached_property
    def store(self) -> RemoteStore | ClusterStore:
        """The store, or stores, that the worker names, or the server itself where it is a store and no worker."""
        try:
            address = self.larder.info().store_address or self.larder.address
        except UnsupportedError:
            address = self.larder.address
        return connect_stores(address, discover_token(Members.parse(address).first, self._token), self._tls, self._timeout_s)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if "store" in self.__dict__:
            self.store.close()
        self.larder.close()
        self._send_spans()
