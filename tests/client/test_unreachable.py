"""What a caller reads where a server can't be reached."""

from __future__ import annotations

import pytest

from kvclient.unreachable import say_unreachable

_LOST = "failed to connect to all addresses; last error: "
_TLS = "Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1:SSL routines:OPENSSL_internal:"


@pytest.mark.parametrize(
    ("details", "said"),
    [
        (
            f"{_LOST}UNKNOWN: ipv4:127.0.0.1:1: Failed to connect to remote host: Connection refused",
            "no connection to 127.0.0.1:1: nothing listens there (Connection refused)",
        ),
        (f"{_LOST}UNKNOWN: ipv6:%5B::1%5D:1: Connection refused", "no connection to [::1]:1: nothing listens there (Connection refused)"),
        (f"{_LOST}UNAVAILABLE: ipv4:10.0.0.1:7421: No route to host", "no connection to 10.0.0.1:7421: No route to host"),
        (
            f"{_LOST}UNKNOWN: ipv4:10.0.0.1:7421: {_TLS}CERTIFICATE_VERIFY_FAILED: certificate has expired: OK",
            "no connection to 10.0.0.1:7421: its certificate is not accepted; check the authority that was given (tls, --ca) "
            "(CERTIFICATE_VERIFY_FAILED: certificate has expired)",
        ),
        (
            "errors resolving nohost:1: [field:hostname lookup error:address lookup failed for nohost:1: Domain name not found]",
            "nohost:1 can't be resolved to an address: address lookup failed for nohost:1: Domain name not found",
        ),
        ("the store is draining", "the store is draining"),
    ],
)
def test_it_says_what_to_change_and_nothing_of_grpc(details: str, said: str) -> None:
    """What is not gRPC's own stays as the server said it."""
    assert say_unreachable(details) == said
