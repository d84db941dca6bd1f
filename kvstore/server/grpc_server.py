"""A gRPC server of ours: bounded threads and bytes, guarded calls, health, reflection, and a stop that finishes what runs."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]

from kvclient.channel import is_loopback
from kvstore.core.errors import ConfigError, UnsupportedError
from kvstore.server.access.audit import AuditLog
from kvstore.server.access.certificates import Certificates
from kvstore.server.access.handshakes import Handshakes, peers_of
from kvstore.server.budget import ByteBudget
from kvstore.server.config import ServerConfig
from kvstore.server.guard import Guard, SilenceWatch
from kvstore.server.observe.calls import CallLog

logger = logging.getLogger(__name__)

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", 8 << 20),
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.http2.max_frame_size", 1 << 20),
    # What a client may send ahead on one stream; larger windows gain little and let a hostile client fill memory.
    ("grpc.http2.lookahead_bytes", 4 << 20),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.write_buffer_size", 4 << 20),
    ("grpc.experimental.tcp_read_chunk_size", 4 << 20),
    ("grpc.experimental.tcp_min_read_chunk_size", 1 << 20),
    ("grpc.experimental.tcp_max_read_chunk_size", 4 << 20),
    ("grpc.max_concurrent_streams", 1024),
    ("grpc.so_reuseport", 0),  # a second server on the same port is an error, not a rival for its calls
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)


@dataclass(frozen=True)
class Registration:
    """One service: its full name, and what adds its servicer to a server."""

    name: str
    add: Callable[[grpc.Server], None]


class _Health(health.HealthServicer):  # type: ignore[misc]
    """Answers Check. A Watch would hold a thread for as long as somebody watches, so it is refused, as the protocol allows."""

    def Watch(self, request: object, context: grpc.ServicerContext, send_response_callback: object = None) -> None:  # noqa: N802
        raise UnsupportedError("health is checked with Check, not watched")


class RpcServer:
    """Serves registrations on one address; `start`, then `drain` once.

    Memory that clients can make it hold is bounded: `config.max_workers` threads, `budget` for chunk bytes, and messages of at most 8 MiB.
    """

    def __init__(self, config: ServerConfig, audit: AuditLog | None = None) -> None:
        self.config = config
        self.audit = audit or AuditLog()
        self.certificates = Certificates(config.tls) if config.tls.cert else None
        self.handshakes = Handshakes(self.audit, lambda: peers_of(self.port)) if config.tls.client_ca else None
        self.watch = SilenceWatch(config.idle_timeout_s, busy_at=max(1, config.max_workers * 3 // 4))
        self.budget = ByteBudget(config.max_inflight_bytes, self.watch.relieve)
        self.calls = CallLog()
        self.gauges: dict[str, Callable[[], int]] = {}  # what services add to what can be seen of the server
        self._pool = ThreadPoolExecutor(config.max_workers, thread_name_prefix="rpc")
        self._server = grpc.server(
            self._pool,
            interceptors=[Guard(self.watch, self.calls, self.audit, self.handshakes)],
            options=_OPTIONS,
            maximum_concurrent_rpcs=4 * config.max_workers,
        )
        self._health = _Health(experimental_non_blocking=False)
        self._watchers = [threading.Thread(target=self.watch.run, name="silence-watch", daemon=True)]
        if self.handshakes is not None:
            self._watchers.append(threading.Thread(target=self.handshakes.run, name="handshakes", daemon=True))
        self.port = 0
        self.is_serving = False
        self.closers: list[Callable[[float], object]] = []  # called with the seconds that a drain may take

    @property
    def address(self) -> str:
        """The address that clients can dial, with the port that was bound."""
        host, _, port = self.config.address.rpartition(":")
        return f"{host}:{self.port}" if port.isdigit() and host else self.config.address

    @property
    def n_waiting(self) -> int:
        """Calls that wait for a thread."""
        return self._pool._work_queue.qsize()

    def start(self, registrations: Sequence[Registration]) -> None:
        """Add the services, bind and serve; an address that is taken or not of this machine raises ConfigError."""
        _check_free(self.config.address)
        for registration in registrations:
            registration.add(self._server)
            self._health.set(registration.name, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection([r.name for r in registrations] + [health.SERVICE_NAME, reflection.SERVICE_NAME], self._server)
        self.port = self._bind()
        for watcher in self._watchers:
            watcher.start()
        self._server.start()
        self.is_serving = True

    def drain(self) -> bool:
        """Take no new calls, let running ones finish for `drain_s` and end the rest; return whether all finished by themselves.

        Health answers NOT_SERVING to the calls that still get through.
        """
        self.is_serving = False
        self._health.enter_graceful_shutdown()
        stopped = self._server.stop(self.config.drain_s)
        for close in self.closers:
            close(self.config.drain_s)
        is_clean = stopped.wait(self.config.drain_s)
        stopped.wait(5.0)
        self.watch.stop()
        if self.handshakes is not None:
            self.handshakes.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)
        return is_clean

    def _bind(self) -> int:
        """Bind the address with TLS where it is configured; return the port."""
        address = self.config.address
        if self.certificates is None and not is_loopback(address):
            logger.warning("%s serves plain text to other machines: allow_plaintext is set", address)
        try:
            if self.certificates is not None:
                begun = self.handshakes.begin if self.handshakes is not None else lambda: None
                return self._server.add_secure_port(address, self.certificates.credentials(begun))
            return self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ConfigError(f"server.address {address} can't be bound: {error}") from error


def _check_free(address: str) -> None:
    """Raise ConfigError with the system's reason where an address can't be bound; gRPC says it to standard error only."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return  # a Unix socket
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host.strip("[]"), int(port)))
        except socket.gaierror:
            return  # gRPC resolves names in ways of its own
        except OSError as error:
            raise ConfigError(f"server.address {address} can't be bound: {error.strerror}") from error
