"""The two services that a client talks to: the worker at its address, and the store that the worker names."""

from __future__ import annotations

import threading

import grpc.aio

from kvclient.aio_channel import ClientTLS, open_channel
from kvproto.v1.context_pb2_grpc import ContextServiceStub
from kvproto.v1.store_pb2_grpc import StoreServiceStub


class AsyncServices:
    """Opens channels when they are first needed, one per address, and closes them together."""

    def __init__(self, address: str, tls: ClientTLS | None) -> None:
        self._address, self._tls = address, tls
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._lock = threading.Lock()  # held while a channel is made, which connects nothing yet

    def context(self) -> ContextServiceStub:
        """Return the worker's service."""
        return ContextServiceStub(self.channel())  # type: ignore[no-untyped-call]

    def store(self, address: str) -> StoreServiceStub:
        """Return the store service at `address`; empty for the worker's own address."""
        return StoreServiceStub(self.channel(address))  # type: ignore[no-untyped-call]

    def channel(self, address: str = "") -> grpc.aio.Channel:
        """Return the channel to an address; empty for the worker's."""
        place = address or self._address
        with self._lock:
            if place not in self._channels:
                self._channels[place] = open_channel(place, self._tls)
            return self._channels[place]

    async def close(self) -> None:
        """Close all channels; a later call opens them again."""
        with self._lock:
            channels = list(self._channels.values())
            self._channels.clear()
        for channel in channels:
            await channel.close()
