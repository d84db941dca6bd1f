"""Which lane to take: the fastest that client and store agree on, and another while it fails."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from kvclient.channel import ClientTLS, is_loopback
from kvclient.lanes.grpc_lane import GrpcLane
from kvclient.lanes.lane import Lane
from kvclient.lanes.share import MAX_STRIPES
from kvclient.lanes.tcp import LOOPBACK_BUFFER_BYTES, TcpLane, TcpSettings
from kvproto.v1 import store_pb2 as pb
from kvstore.core.errors import ConfigError, KVError, UnsupportedError
from kvstore.core.pool import BufferPool

logger = logging.getLogger(__name__)

LaneName = Literal["auto", "shm", "tcp", "grpc"]
ORDER: tuple[LaneName, ...] = ("shm", "tcp", "grpc")
STRIPES_AFAR = 2
PAUSE_S = 2.0  # a lane that failed is not tried again before
_MACHINE = Path("/proc/sys/kernel/random/boot_id")


class Lanes:
    """Negotiates with the first chunk that moves. Thread-safe.

    Parameters
    ----------
    address : str
        host:port of the store.
    open_lane : callable
        Asks the store for its lanes and a ticket, within a deadline.
    grpc_lane : GrpcLane
        The lane that always works.
    name : str
        "auto", or the only lane to use.
    socket_buffer_bytes : int or None
        Buffer of a TCP connection; None takes 256 KiB on loopback and what the store says elsewhere.
    stripes : int or None
        TCP connections that carry a large chunk together; None takes one on loopback and two elsewhere.
    """

    def __init__(
        self,
        address: str,
        open_lane: Callable[[float], pb.OpenLaneResponse],
        grpc_lane: GrpcLane,
        tls: ClientTLS | None,
        name: LaneName,
        pool: BufferPool,
        max_blob_nbytes: int,
        socket_buffer_bytes: int | None,
        stripes: int | None,
    ) -> None:
        if stripes is not None and not 1 <= stripes <= MAX_STRIPES:
            raise ConfigError(f"a chunk travels by 1 to {MAX_STRIPES} connections, got {stripes} stripes")
        if name not in ("auto", *ORDER):
            raise ConfigError(f"lane {name!r} is not one of auto, {', '.join(ORDER)}")
        self._address, self._open_lane, self._tls, self._name = address, open_lane, tls, name
        self._pool, self._max_blob_nbytes, self._socket_buffer_bytes = pool, max_blob_nbytes, socket_buffer_bytes
        self._stripes = stripes
        self._lock = threading.Lock()
        self._grpc = grpc_lane
        self._lane: Lane | None = grpc_lane if name == "grpc" else None
        self._retired: list[Lane] = []
        self._failed_at: dict[str, float] = {}

    def take(self, deadline: float) -> Lane:
        """Return the lane to use now."""
        lane = self._lane
        if lane is not None and not self._may_try_again():
            return lane
        with self._lock:
            if self._lane is None or self._may_try_again():
                chosen, before = self._choose(deadline), self._lane
                if before is None or before.name != chosen.name:
                    self._lane = chosen
                    self._retire(before)
            assert self._lane is not None
            return self._lane

    def failed(self, lane: Lane, error: KVError) -> None:
        """Note that a lane did not answer: it is agreed on anew, and another is taken for a while. What is under way on it goes on."""
        if lane is self._grpc:
            return
        with self._lock:
            if self._name == "auto":
                self._failed_at[lane.name] = time.monotonic()
            if self._lane is lane:
                logger.warning("lane %s to %s failed: %s", lane.name, self._address, str(error))  # a record may be kept, memory not
                self._lane = None
                self._retire(lane)

    def close(self) -> None:
        """Close what is open."""
        with self._lock:
            for lane in (*self._retired, self._lane):
                if lane is not None:
                    lane.close()

    def _retire(self, lane: Lane | None) -> None:
        """Let a lane go when nobody uses it any more. Called with the lock held."""
        candidates = [*self._retired, lane] if lane is not None else self._retired
        self._retired = [each for each in candidates if each.retire()]

    def _may_try_again(self) -> bool:
        """Tell whether this lane is only a makeshift, and a faster one may have come back."""
        return bool(self._failed_at) and time.monotonic() - max(self._failed_at.values()) > PAUSE_S

    def _choose(self, deadline: float) -> Lane:
        """Return the first lane of the order that the store offers and that did not fail just now."""
        try:
            offer = self._open_lane(deadline)
        except UnsupportedError:
            offer = pb.OpenLaneResponse()
        now = time.monotonic()
        self._failed_at = {name: at for name, at in self._failed_at.items() if now - at <= PAUSE_S}
        for name in ORDER if self._name == "auto" else (self._name,):
            lane = None if name in self._failed_at else self._make(name, offer)
            if lane is not None:
                return lane
        raise UnsupportedError(f"{self._address} offers no lane {self._name} to this client; use lane auto")

    def _make(self, name: str, offer: pb.OpenLaneResponse) -> Lane | None:
        """Return a lane, or None where the offer does not reach this client."""
        if name == "grpc":
            return self._grpc
        if name == "tcp":
            return TcpLane(self._tcp_settings(offer), self._ticket, self._pool, self._max_blob_nbytes) if offer.tcp_port else None
        if not offer.shm_path or offer.machine != machine_id() or not Path(offer.shm_path).exists():
            return None
        from kvclient.lanes.shm import ShmLane  # numpy takes a fifth of a second to import

        return ShmLane(offer.shm_path, self._ticket, self._pool, self._max_blob_nbytes)

    def _tcp_settings(self, offer: pb.OpenLaneResponse) -> TcpSettings:
        host = self._address.rpartition(":")[0].strip("[]")
        is_near = is_loopback(self._address)
        buffer_bytes, stripes, tls = self._socket_buffer_bytes, self._stripes, self._tls
        return TcpSettings(
            host,
            offer.tcp_port,
            (LOOPBACK_BUFFER_BYTES if is_near else offer.socket_buffer_bytes) if buffer_bytes is None else buffer_bytes,
            (1 if is_near else STRIPES_AFAR) if stripes is None else stripes,
            tls.context() if tls else None,
            tls.server_name if tls else "",
        )

    def _ticket(self, deadline: float) -> bytes:
        return self._open_lane(deadline).ticket


def machine_id() -> str:
    """Return what tells one running machine from another; "" where the system doesn't say."""
    try:
        return _MACHINE.read_text().strip()
    except OSError:
        return ""
