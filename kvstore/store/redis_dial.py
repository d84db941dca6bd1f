"""Open connections to Redis: what its URL says, TCP, Unix sockets, TLS, passwords, and redis-py for what carries no record."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

from kvstore.core.errors import CapacityError, ConfigError, DeadlineError, MissingExtraError, TierUnavailableError
from kvstore.store.redis_socket import Channel, PlainChannel, TlsChannel
from kvstore.store.resp import Connection, Refusal

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
    window : int
        Pieces of 1 MiB that are asked for, or sent, ahead of the one that is awaited, per server.
    socket_buffer : int
        Bytes of a TCP socket's buffers, each way; 0 leaves them to the system, which suits a network with a long round trip.
    """

    url: str
    timeout_s: float = 0.5
    ttl_s: int = 0
    cluster: str = "off"
    connections: int = 4
    window: int = 4
    socket_buffer: int = 256 << 10

    def __post_init__(self) -> None:
        if self.timeout_s <= 0 or self.ttl_s < 0 or self.cluster not in ("on", "off"):
            raise ConfigError("redis needs timeout_s above 0, ttl_s of at least 0 and cluster on or off")
        if not (1 <= self.connections <= 64 and 1 <= self.window <= 64 and self.socket_buffer >= 0):
            raise ConfigError("redis needs 1 to 64 connections, a window of 1 to 64 and a socket_buffer of at least 0 B")


class Control(Protocol):
    """What we need of redis-py's client, for everything that carries no record."""

    def execute_command(self, *words: str) -> object: ...
    def scan_iter(self, match: bytes, count: int) -> Iterator[bytes]: ...
    def info(self, section: str) -> Mapping[str, object]: ...
    def close(self) -> None: ...


@dataclass(frozen=True, order=True)
class Address:
    """One server: host and port, or the path of a Unix socket and port 0."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}" if self.port else self.host


class Dialer:
    """Opens connections to any node of the Redis that a URL names: all of them take the same credentials."""

    def __init__(self, settings: RedisSettings) -> None:
        self.settings = settings
        self._options = _parse(settings.url)
        if "path" in self._options:
            self.seed = Address(str(self._options["path"]), 0)
        else:
            self.seed = Address(str(self._options.get("host", "localhost")), int(str(self._options.get("port", 6379))))
        self._tls = _tls_context(self._options) if settings.url.startswith("rediss://") else None

    def dial(self, address: Address, failed: Callable[[], None]) -> Connection:
        """Connect and log in; raises TierUnavailableError or DeadlineError. Looking up the host's name is not bounded in time."""
        timeout_s, where = self.settings.timeout_s, f"redis at {address}"
        try:
            channel = self._open(address, timeout_s)
        except TimeoutError as error:
            raise DeadlineError(f"{where}: no connection within {timeout_s:.3f} s") from error
        except OSError as error:
            raise TierUnavailableError(f"{where}: {error}") from error
        connection = Connection(channel, where, timeout_s, failed)
        try:
            self._log_in(connection, where)
        except BaseException:
            connection.close()
            raise
        return connection

    def control(self, address: Address) -> Control:
        """Return redis-py's client of one server; it connects at its first command, and never tries again."""
        redis = import_redis()
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        timeout_s = self.settings.timeout_s
        options = {**self._options, **({"path": address.host} if not address.port else {"host": address.host, "port": address.port})}
        pool = redis.ConnectionPool(
            socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0), protocol=2, **options
        )
        client: Control = redis.Redis.from_pool(pool)
        return client

    def _open(self, address: Address, timeout_s: float) -> Channel:
        if not address.port:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.settimeout(timeout_s)
                sock.connect(address.host)
            except BaseException:
                sock.close()
                raise
            return PlainChannel(sock)
        sock = socket.create_connection((address.host, address.port), timeout_s)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.settings.socket_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.settings.socket_buffer)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.settings.socket_buffer)
            return PlainChannel(sock) if self._tls is None else TlsChannel(self._tls.wrap_socket(sock, server_hostname=address.host))
        except BaseException:
            sock.close()
            raise

    def _log_in(self, connection: Connection, where: str) -> None:
        """Say who we are and which database we mean; raises TierUnavailableError when that is refused."""
        words = {name: str(self._options.get(name) or "").encode() for name in ("username", "password", "db", "client_name")}
        if words["password"]:
            connection.ask(b"AUTH", *filter(None, (words["username"], words["password"])))
        if words["db"] not in (b"", b"0"):
            connection.ask(b"SELECT", words["db"])
        if words["client_name"]:
            connection.ask(b"CLIENT", b"SETNAME", words["client_name"])
        while connection.n_owed:
            answer = connection.reply()
            if isinstance(answer, Refusal):
                raise answer.error(where)


def import_redis() -> ModuleType:
    """Import redis-py, or say how to install it."""
    try:
        import redis
    except ImportError as error:
        raise MissingExtraError("the Redis tier needs the redis package; pip install 'kv-larder[store]'") from error
    return redis


@contextmanager
def redis_errors(where: str) -> Iterator[None]:
    """Turn what redis-py raises into our errors."""
    from redis import exceptions

    try:
        yield
    except exceptions.TimeoutError as error:
        raise DeadlineError(f"{where}: no answer in time ({error})") from error
    except exceptions.OutOfMemoryError as error:
        raise CapacityError(f"{where}: Redis is full; raise its maxmemory or let it evict ({error})") from error
    except (exceptions.RedisError, OSError) as error:
        raise TierUnavailableError(f"{where}: {error}") from error


def _parse(url: str) -> dict[str, object]:
    """Return what a URL says; the URL itself is kept out of messages, since it may hold a password."""
    import_redis()
    from redis.connection import parse_url

    try:
        options: dict[str, object] = parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise ConfigError(f"the redis url is not one: {error}") from error
    if unknown := options.keys() - _KEYS:
        raise ConfigError(f"the redis url has unknown options {sorted(unknown)}; known are {sorted(_KEYS - {'connection_class'})}")
    return options


def _tls_context(options: Mapping[str, object]) -> ssl.SSLContext:
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
