"""Who is calling: the bearer token of a call stands for a tenant, and nothing else does."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from kvstore.core.errors import AuthError
from kvstore.core.tokens import MAX_TOKEN_LENGTH, Credential, create_tokens, read_tokens

Metadata = Sequence[tuple[str, str | bytes]]
Authenticate = Callable[[Metadata], str]

_SCHEME = "bearer "


class TokenAuthenticator:
    """Maps the "authorization" metadata of a call to a tenant, in a time that does not depend on which token comes close.

    Holds digests only, so a dump of the server's memory shows no token.
    """

    def __init__(self, credentials: Iterable[Credential]) -> None:
        self._tenants = [(_digest(c.token), c.tenant) for c in credentials]

    @property
    def n_tenants(self) -> int:
        """How many tenants there are."""
        return len({tenant for _, tenant in self._tenants})

    def __call__(self, metadata: Metadata) -> str:
        """Return the tenant; raises AuthError for a missing, repeated, malformed or unknown token."""
        digest = _digest(_bearer(metadata))
        tenant = ""
        for known, name in self._tenants:  # all of them, whichever matches
            if hmac.compare_digest(known, digest):
                tenant = name
        if not tenant:
            raise AuthError("the bearer token is not accepted here; use one from the server's tokens file")
        return tenant


def open_authenticator(tokens_file: Path) -> TokenAuthenticator:
    """Read the tokens file, writing one with a random token for the tenant "default" at the first start."""
    if not tokens_file.exists():
        create_tokens(tokens_file)
    return TokenAuthenticator(read_tokens(tokens_file))


def _bearer(metadata: Metadata) -> str:
    """Return the token of the one authorization entry."""
    values = [value for key, value in metadata if key == "authorization"]
    if len(values) != 1:
        raise AuthError("the call needs exactly one 'authorization: Bearer <token>'; set LARDER_TOKEN or use the server's tokens file")
    value = values[0] if isinstance(values[0], str) else ""
    if not value.lower().startswith(_SCHEME) or len(value) > len(_SCHEME) + MAX_TOKEN_LENGTH:
        raise AuthError("the authorization is not of the form 'Bearer <token>'")
    return value[len(_SCHEME) :].strip()


def _digest(token: str) -> bytes:
    """Return what is compared instead of the token: always 32 bytes, so its length tells nothing."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
