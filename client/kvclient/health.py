"""The health service of gRPC, spoken without its package: one request, one number."""

from __future__ import annotations

from kvstore.core.errors import TierUnavailableError

METHOD = "/grpc.health.v1.Health/Check"
REQUEST = b""  # the server as a whole
_SERVING = b"\x08\x01"  # field 1, a varint: SERVING


def check_serving(response: bytes, address: str) -> None:
    """Raise TierUnavailableError unless the answer of a health check says that the server serves."""
    if response != _SERVING:
        raise TierUnavailableError(f"the server at {address} answers but does not serve yet, or no longer; try again")


def as_bytes(message: bytes) -> bytes:
    """Return the message as it is: it was never parsed."""
    return message
