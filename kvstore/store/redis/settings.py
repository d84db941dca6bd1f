"""How Redis is spoken to, and what its URL says."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass

from kvstore.core.errors import ConfigError
from kvstore.store.redis.client import import_redis

_TLS_KEYS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_keyfile_password", "ssl_cert_reqs", "ssl_check_hostname"}
_KEYS = {"host", "port", "path", "db", "username", "password", "client_name", "connection_class", *_TLS_KEYS}
_CERT_REQS = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


@dataclass(frozen=True)
class RedisSettings:
    """Where Redis is and how it is spoken to.

    Parameters
    ----------
    url : str
        redis://, rediss:// (TLS) or unix://, with user, password and database; TLS takes ssl_ca_certs, ssl_certfile, ssl_keyfile,
        ssl_cert_reqs (required, optional or none) and ssl_check_hostname from its query.
    timeout_s : float
        Most seconds for connecting, for one reply, and for waiting for a free connection.
    ttl_s : int
        Seconds after which a record expires; 0 for never.
    cluster : str
        "on" when the URL is that of one node of a Redis Cluster, else "off".
    connections : int
        Most connections to one server for records.
    ahead : int
        Bytes of a record that are asked for, or sent, ahead of what is awaited, per server. 0 chooses 512 KiB for a server on this
        machine and 4 MiB for others; speed times round trip is the least that keeps a network busy.
    socket_buffer : int
        Bytes of a TCP socket's buffers, each way. 0 chooses 256 KiB for a server on this machine and leaves them to the system for others.
    """

    url: str
    timeout_s: float = 0.5
    ttl_s: int = 0
    cluster: str = "off"
    connections: int = 4
    ahead: int = 0
    socket_buffer: int = 0

    def __post_init__(self) -> None:
        if self.timeout_s <= 0 or self.ttl_s < 0 or self.cluster not in ("on", "off"):
            raise ConfigError("redis needs timeout_s above 0, ttl_s of at least 0 and cluster on or off")
        if not (1 <= self.connections <= 64 and 0 <= self.ahead <= 64 << 20 and self.socket_buffer >= 0):
            raise ConfigError("redis needs 1 to 64 connections, at most 64 MiB ahead and a socket_buffer of at least 0 B")


def read_url(url: str) -> dict[str, object]:
    """Return what a URL says; raises ConfigError without the URL in its message, since it may hold a password."""
    import_redis()
    from redis.connection import parse_url

    try:
        options: dict[str, object] = parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise ConfigError(f"the redis url is not one: {error}") from error
    if unknown := options.keys() - _KEYS:
        raise ConfigError(f"the redis url has unknown options {sorted(unknown)}; known are {sorted(_KEYS - {'connection_class'})}")
    return options


def tls_context(options: Mapping[str, object]) -> ssl.SSLContext:
    """Return a context that verifies the server unless the URL says otherwise; raises ConfigError for files that cannot be read."""
    requires = str(options.get("ssl_cert_reqs", "required"))
    if requires not in _CERT_REQS:
        raise ConfigError(f"ssl_cert_reqs is {requires!r}; use one of {', '.join(_CERT_REQS)}")
    certfile, keyfile, password = (options.get(name) for name in ("ssl_certfile", "ssl_keyfile", "ssl_keyfile_password"))
    try:
        context = ssl.create_default_context(cafile=str(options["ssl_ca_certs"]) if "ssl_ca_certs" in options else None)
        if certfile:
            context.load_cert_chain(str(certfile), str(keyfile) if keyfile else None, str(password) if password else None)
    except OSError as error:
        raise ConfigError(f"a certificate of the redis url cannot be used: {error}") from error
    context.check_hostname = requires != "none" and bool(options.get("ssl_check_hostname", True))
    context.verify_mode = _CERT_REQS[requires]
    return context
