"""The certificates that a server shows and asks for, read again when their files change."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from kvstore.core.errors import ConfigError
from kvstore.server.config import TLSConfig
from kvstore.store.changing import Changing


@dataclass(frozen=True)
class _Loaded:
    """One consistent set of files: for gRPC as bytes, for sockets as a context."""

    pems: tuple[bytes, ...]
    context: ssl.SSLContext


class Certificates:
    """Serves gRPC and the tcp lane with the same files; connections that are open keep what they were opened with. Thread-safe.

    Files that do not belong together, as while only one of two is replaced, leave the ones before in force. What can't be used at the start
    raises ConfigError.

    Parameters
    ----------
    tls : TLSConfig
        With `cert` and `key`. With `client_ca`, clients must show a certificate of it.
    """

    def __init__(self, tls: TLSConfig) -> None:
        self._files = {name: Path(path).expanduser() for name, path in vars(tls).items() if path}
        self._loaded = Changing(tuple(self._files.values()), lambda: _load(self._files))
        self._shown: _Loaded | None = None

    def context(self) -> ssl.SSLContext:
        """Return the context for a connection that is accepted now."""
        return self._loaded.current().context

    def credentials(self, begun: Callable[[], None] = lambda: None) -> grpc.ServerCredentials:
        """Return what gRPC asks again before each handshake; `begun` is called then, too."""
        self._shown = self._loaded.current()

        def replacement() -> Any:  # its type is stated without the None that gRPC takes for "no change"
            begun()
            return self._replacement()

        return grpc.dynamic_ssl_server_credentials(_configuration(self._shown), replacement, "client_ca" in self._files)

    def _replacement(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what gRPC shows from now on; None for what it shows already."""
        loaded = self._loaded.current()
        if loaded is self._shown:
            return None
        self._shown = loaded
        return _configuration(loaded)


def _configuration(loaded: _Loaded) -> grpc.ServerCertificateConfiguration:
    cert, key, *client_ca = loaded.pems
    return grpc.ssl_server_certificate_configuration([(key, cert)], client_ca[0] if client_ca else None)


def _load(files: dict[str, Path]) -> _Loaded:
    """Read the files and see that they belong together; raises ConfigError that names the setting."""
    pems = tuple(_read(name, path) for name, path in files.items())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(files["cert"], files["key"])
        if "client_ca" in files:
            context.load_verify_locations(files["client_ca"])
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:
        raise ConfigError(f"server.tls.cert {files['cert']} and its key can't be used together: {error}") from error
    if pems != tuple(_read(name, path) for name, path in files.items()):
        raise ConfigError(f"server.tls.cert {files['cert']} was replaced while it was read")
    return _Loaded(pems, context)


def _read(name: str, path: Path) -> bytes:
    """Read one PEM file; ConfigError says which setting is wrong."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"server.tls.{name} {path}: {error.strerror}") from error
