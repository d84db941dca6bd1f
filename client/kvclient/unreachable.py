"""What gRPC says of a server that it can't reach, in words that say what to change."""

from __future__ import annotations

import re
from urllib.parse import unquote

_NO_CONNECTION = re.compile(r"failed to connect to all addresses; last error: \w+: (?:ipv[46]:)?(?P<where>\S+?): (?P<why>.*)", re.DOTALL)
_NO_NAME = re.compile(r"errors resolving (?P<where>\S+): \[(?:field:hostname lookup error:)?(?P<why>.*)\]", re.DOTALL)
# What stands in gRPC's words -> what it means. The first that fits counts.
_MEANINGS = {
    "Connection refused": "nothing listens there",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not accepted; check the authority that was given (tls, --ca)",
    "Hostname Verification": "its certificate has another name; say which one to expect (server_name, --server-name)",
    "WRONG_VERSION_NUMBER": "it does not speak TLS; leave out the authority (tls, --ca)",
    "Socket closed": "it hung up; if it speaks TLS, name its authority (tls, --ca)",
    "SETTINGS frame": "what listens there does not answer, or is no gRPC server",
}


def say_unreachable(details: str) -> str:
    """Return gRPC's details of a failed call with the meaning in front; details of anything else as they are."""
    if name := _NO_NAME.fullmatch(details):
        return f"{name['where']} can't be resolved to an address: {name['why']}"
    found = _NO_CONNECTION.fullmatch(details)
    if found is None:
        return details
    why = found["why"].removeprefix("Failed to connect to remote host: ").removesuffix(": OK").rpartition("OPENSSL_internal:")[2]
    meaning = next((f"{said} ({why})" for words, said in _MEANINGS.items() if words in why), why)
    return f"no connection to {unquote(found['where'])}: {meaning}"
