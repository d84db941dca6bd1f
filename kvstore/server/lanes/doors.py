"""The ways into a store beside gRPC: opened at start, told to clients that were authenticated, closed at the end."""

from __future__ import annotations

import logging
import secrets
import tempfile
from pathlib import Path

from kvclient.lanes.choice import machine_id
from kvproto.v1 import store_pb2 as pb
from kvstore.core.errors import ConfigError
from kvstore.server.access.auth import Identity
from kvstore.server.access.certificates import Certificates
from kvstore.server.access.entrance import Entrance
from kvstore.server.budget import ByteBudget
from kvstore.server.config import LanesConfig, ServerConfig
from kvstore.server.guard import SilenceWatch
from kvstore.server.lanes.listener import Listener, listen_tcp, listen_unix
from kvstore.server.lanes.tickets import Tickets
from kvstore.store.shared_blocks import SharedBlocks

logger = logging.getLogger(__name__)

_MAX_PATH_CHARS = 100  # a Unix socket's address is not longer than 107


class Doors:
    """Opens the configured lanes on the host of the gRPC server; `close` once.

    Parameters
    ----------
    config : ServerConfig
        Its `lanes`, host and limits.
    blocks : SharedBlocks or None
        The memory that the shm lane shares; without it there is no such lane.
    certificates : Certificates or None
        What the tcp lane is secured with; None for plain text.
    """

    def __init__(
        self,
        config: ServerConfig,
        entrance: Entrance,
        budget: ByteBudget,
        watch: SilenceWatch,
        blocks: SharedBlocks | None,
        certificates: Certificates | None,
    ) -> None:
        self._tickets = Tickets()
        self._answer = pb.OpenLaneResponse(machine=machine_id(), socket_buffer_bytes=config.lanes.socket_buffer)
        self._listeners: list[Listener] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        lanes = config.lanes

        def listener(listening: object, **more: object) -> None:
            self._listeners.append(
                Listener(listening, entrance, self._tickets, budget, watch, config.idle_timeout_s, lanes.max_connections, **more)  # type: ignore[arg-type]
            )

        if blocks is not None:
            path = self._socket_path(lanes)
            listener(listen_unix(path), blocks=blocks)
            self._answer.shm_path = str(path)
        if lanes.tcp:
            host = config.address.rpartition(":")[0].strip("[]")
            listening = listen_tcp(host, lanes.tcp_port)
            listener(listening, socket_buffer_bytes=lanes.socket_buffer, tls=certificates.context if certificates else None)
            self._answer.tcp_port = listening.getsockname()[1]
        for each in self._listeners:
            each.start()

    @property
    def n_connections(self) -> int:
        """Connections of all lanes."""
        return sum(each.n_connections for each in self._listeners)

    @property
    def n_at_work(self) -> int:
        """Connections that are in the middle of a request."""
        return sum(each.n_at_work for each in self._listeners)

    def open_lane(self, caller: Identity) -> pb.OpenLaneResponse:
        """Return what a client of the caller's needs to dial one connection."""
        answer = pb.OpenLaneResponse(ticket=self._tickets.issue(caller))
        answer.MergeFrom(self._answer)
        return answer

    def close(self, drain_s: float = 0.0) -> None:
        """Let requests finish for `drain_s` and close every connection."""
        for each in self._listeners:
            each.close(drain_s)
        if self._folder:
            self._folder.cleanup()

    def _socket_path(self, lanes: LanesConfig) -> Path:
        """Return a path for the Unix socket in a directory that only this user can enter."""
        if lanes.shm_directory:
            folder = Path(lanes.shm_directory).expanduser()
        else:
            self._folder = tempfile.TemporaryDirectory(prefix="larder-", ignore_cleanup_errors=True)
            folder = Path(self._folder.name)
        path = folder / f"shm-{secrets.token_hex(4)}"
        if len(str(path)) > _MAX_PATH_CHARS:
            raise ConfigError(
                f"server.lanes.shm_directory {folder} is too long for a socket; use at most {_MAX_PATH_CHARS - 13} characters"
            )
        return path
