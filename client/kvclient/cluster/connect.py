"""From what an option says about stores to a StoreAPI: one server, or several that serve together."""

from __future__ import annotations

from dataclasses import replace

from kvclient.channel import ClientTLS
from kvclient.cluster.members import Members
from kvclient.cluster.store import ClusterStore
from kvclient.remote import RemoteStore
from kvclient.retry import Retry


def connect_stores(
    text: str, token: str, tls: ClientTLS | None = None, timeout_s: float = 30.0, replicas: int = 1
) -> RemoteStore | ClusterStore:
    """Return the client of one store, or of several: "host:port", "host:port,host:port" or "dns:name:port".

    Of several, each is given `timeout_s` to answer and left out while it doesn't; where a name stands for them, their certificates hold
    that name unless `tls` says another. Raises ConfigError.
    """
    members = Members.parse(text)
    if members.is_one:
        return RemoteStore(members.first, token, tls, timeout_s)
    if tls and members.name and not tls.server_name:
        tls = replace(tls, server_name=members.name)

    def connect(address: str) -> RemoteStore:
        return RemoteStore(address, token, tls, timeout_s, Retry(attempts=1))

    return ClusterStore(members, connect, replicas, timeout_s)
