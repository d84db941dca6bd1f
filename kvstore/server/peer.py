"""Who is at the other end of a connection, spelled as gRPC does."""

from __future__ import annotations

import socket
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address


def peer_of(connection: socket.socket) -> str:
    """Return the other end's address; "unix:" for a process of this machine, "gone" for one that is not connected any more."""
    if connection.family == socket.AF_UNIX:
        return "unix:"
    with suppress(OSError):
        host, port = socket.socket.getpeername(connection)[:2]
        return spell(IPv6Address(host) if connection.family == socket.AF_INET6 else IPv4Address(host), port)
    return "gone"


def spell(address: IPv4Address | IPv6Address, port: int) -> str:
    """Return an address and a port; one that IPv6 only carries is written as what it is."""
    host = (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
    return f"ipv4:{host}:{port}" if isinstance(host, IPv4Address) else f"ipv6:%5B{host}%5D:{port}"
