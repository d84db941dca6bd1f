"""Which store servers there are: one address, a list of them, or all that a name stands for."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvclient.address import check_address, split_address
from kvstore.core.errors import ConfigError, TierUnavailableError

_DNS = "dns:"
_OTHERWISE = ", several with commas between them, or dns:name:port"
MAX_MEMBERS = 64

Resolve = Callable[[str, int], Sequence[str]]
"""From a name and a port to addresses; raises TierUnavailableError."""


def resolve_name(name: str, port: int) -> list[str]:
    """Return host:port of every address that a name stands for, in order; raises TierUnavailableError where it stands for none."""
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise TierUnavailableError(f"the name {name} of the stores cannot be resolved: {error}") from error
    hosts = sorted({str(place[0]) for *_, place in found})
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts]


@dataclass(frozen=True)
class Members:
    """What an option names as the stores; `parse` reads it.

    Parameters
    ----------
    listed : tuple of str
        host:port of each, where they are listed.
    name, port : str, int
        The name whose addresses are the stores, such as a headless service of Kubernetes; "" where they are listed.
    """

    listed: tuple[str, ...] = ()
    name: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Members:
        """Read "host:port", "host:port,host:port" or "dns:name:port"; raises ConfigError that says which part is wrong."""
        if text.startswith(_DNS):
            name, port = split_address(text.removeprefix(_DNS), otherwise=_OTHERWISE)
            return cls((), name, port)
        listed = tuple(part.strip() for part in text.split(","))
        for address in listed:
            check_address(address, otherwise=_OTHERWISE)
        if len(set(listed)) < len(listed) or len(listed) > MAX_MEMBERS:
            raise ConfigError(f"{text!r} should list 1 to {MAX_MEMBERS} different addresses, got {len(listed)}")
        return cls(listed)

    @property
    def is_one(self) -> bool:
        """Whether it is one server, now and later."""
        return len(self.listed) == 1

    @property
    def first(self) -> str:
        """An address that stands for all, where they are on one machine or none is."""
        return self.listed[0] if self.listed else f"{self.name}:{self.port}"

    def addresses(self, resolve: Resolve = resolve_name) -> tuple[str, ...]:
        """Return the addresses of now; a name is asked for, which takes as long as the system's resolver does."""
        return self.listed or tuple(resolve(self.name, self.port))[:MAX_MEMBERS]
