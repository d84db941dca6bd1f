"""Open connections to Redis: TCP, Unix sockets, TLS, passwords."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from kvstore.core.errors import DeadlineError, TierUnavailableError
from kvstore.store.redis.client import Control, import_redis
from kvstore.store.redis.resp import Connection, Refusal
from kvstore.store.redis.settings import RedisSettings, read_url, tls_context
from kvstore.store.redis.socket import Channel, PlainChannel, TlsChannel

_AHEAD_NEAR_NBYTES, _AHEAD_FAR_NBYTES = 512 << 10, 4 << 20
_BUFFER_NEAR_NBYTES = 256 << 10


@dataclass(frozen=True, order=True)
class Address:
    """One server: host and port, or the path of a Unix socket and port 0."""

    host: str
    port: int

    @classmethod
    def of(cls, options: Mapping[str, object]) -> Address:
        """Return the server that a URL names, from what `read_url` says of it."""
        if "path" in options:
            return cls(str(options["path"]), 0)
        return cls(str(options.get("host", "localhost")), int(str(options.get("port", 6379))))

    @property
    def is_near(self) -> bool:
        """Whether it is on this machine, as far as its name tells."""
        if not self.port or self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"{self.host}:{self.port}" if self.port else self.host


class Dialer:
    """Opens connections to any node of the Redis that a URL names: all of them take the same credentials."""

    def __init__(self, settings: RedisSettings) -> None:
        self.settings = settings
        self._options = read_url(settings.url)
        self.seed = Address.of(self._options)
        self._tls = tls_context(self._options) if settings.url.startswith("rediss://") else None

    @property
    def ahead_nbytes(self) -> int:
        """How many bytes of a record are under way ahead of what is awaited."""
        return self.settings.ahead or (_AHEAD_NEAR_NBYTES if self.seed.is_near else _AHEAD_FAR_NBYTES)

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
            if buffer_nbytes := self.settings.socket_buffer or (_BUFFER_NEAR_NBYTES if address.is_near else 0):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_nbytes)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_nbytes)
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
