"""Channels for asyncio: the same options and TLS as those for threads."""

from __future__ import annotations

import grpc.aio

from kvclient.channel import ClientTLS, channel_credentials, channel_options

__all__ = ["ClientTLS", "open_channel"]


def open_channel(address: str, tls: ClientTLS | None = None) -> grpc.aio.Channel:
    """Return a channel to host:port that belongs to the running event loop; it connects with the first call."""
    if tls is None:
        return grpc.aio.insecure_channel(address, channel_options())
    return grpc.aio.secure_channel(address, channel_credentials(tls), channel_options(tls))
