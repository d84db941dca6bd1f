"""The two services that a client talks to: the worker at an address, and the stores that the worker names."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import grpc.aio

from kvclient.aio_channel import ClientTLS, open_channel
from kvproto.v1.context_pb2_grpc import ContextServiceStub
from kvproto.v1.store_pb2_grpc import StoreServiceStub


class AsyncServices:
    """Opens channels when they are first needed, one per address, and closes them together."""

    def __init__(self, tls: ClientTLS | None) -> None:
        self._tls = tls
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._names: dict[str, str] = {}
        self._lock = threading.Lock()  # held while a channel is made, which connects nothing yet

    def expect(self, addresses: Sequence[str], name: str) -> None:
        """Say which name the certificates at these addresses hold, unless the client's own settings say another."""
        if self._tls and not self._tls.server_name:
            self._names |= dict.fromkeys(addresses, name)

    def context(self, address: str) -> ContextServiceStub:
        """Return the service of the worker at `address`."""
        return ContextServiceStub(self.channel(address))  # type: ignore[no-untyped-call]

    def store(self, address: str) -> StoreServiceStub:
        """Return the store service at `address`."""
        return StoreServiceStub(self.channel(address))  # type: ignore[no-untyped-call]

    def channel(self, address: str) -> grpc.aio.Channel:
        """Return the channel to an address."""
        with self._lock:
            if address not in self._channels:
                name = self._names.get(address, "")
                self._channels[address] = open_channel(address, replace(self._tls, server_name=name) if self._tls and name else self._tls)
            return self._channels[address]

    async def close(self) -> None:
        """Close all channels; a later call opens them again."""
        with self._lock:
            channels = list(self._channels.values())
            self._channels.clear()
        for channel in channels:
            await channel.close()
