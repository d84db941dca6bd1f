"""Who is calling: the bearer token of a call stands for a tenant, and nothing else does."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from kvstore.core.errors import AuthError
from kvstore.core.tokens import MAX_TOKEN_LENGTH, Credential, create_tokens, read_tokens
from kvstore.server.access.jwt_tokens import MAX_JWT_LENGTH, Claims, JwtVerifier
from kvstore.server.config import AuthConfig
from kvstore.store.changing import Changing

Metadata = Sequence[tuple[str, str | bytes]]

_SCHEME = "bearer "


@dataclass(frozen=True)
class Identity:
    """Who calls: a tenant, and within it a subject that an audit line may name.

    Parameters
    ----------
    subject : str
        The line of the tokens file, or the subject of a JWT; no secret.
    is_admin : bool
        May do what touches others: see the use of the whole store, and drop all of the tenant's chunks at once.
    expires_s : float
        Seconds since the epoch from which on the caller has to show another token; infinite for a token of the tokens file.
    accepted_by : object
        What has to be in force for the caller to remain: the digest of a token, or a set of keys; None for one who needs nothing.
    """

    tenant: str
    subject: str = ""
    is_admin: bool = False
    expires_s: float = inf
    accepted_by: object = field(default=None, repr=False, compare=False)


Authenticate = Callable[[Metadata], Identity]
Known = Mapping[bytes, Identity]
"""Whom each token stands for, by its digest."""


class TokenAuthenticator:
    """Maps the "authorization" metadata of a call to an identity, in a time that does not depend on which token comes close.

    Holds digests only, so a dump of the server's memory shows no token of the tokens file.

    Parameters
    ----------
    known : callable
        Returns the tokens of the tokens file as they are now.
    jwt : JwtVerifier or None
        Takes the tokens that are not among them.
    clock : callable
        Seconds since the epoch.
    """

    def __init__(self, known: Callable[[], Known], jwt: JwtVerifier | None = None, clock: Callable[[], float] = time.time) -> None:
        self._known, self._clock = known, clock
        self._jwt = jwt
        self._only = ""

    def admit_only_tenant(self) -> bool:
        """Let in no other tenant from now on, whatever becomes of the tokens file, if all tokens now are of the same; tell if they are.

        For a server that shares its memory with processes of that tenant.
        """
        tenants = {identity.tenant for identity in self._known().values()}
        if self._jwt is None and len(tenants) == 1:
            self._only = tenants.pop()
        return bool(self._only)

    def still_accepts(self, caller: Identity) -> bool:
        """Tell whether what a caller showed before is in force: not expired, and not taken out of the tokens file or the JWKS file."""
        if self._clock() >= caller.expires_s:
            return False
        if isinstance(caller.accepted_by, bytes):
            return caller.accepted_by in self._known()
        return caller.accepted_by is None or (self._jwt is not None and self._jwt.keys is caller.accepted_by)

    def __call__(self, metadata: Metadata) -> Identity:
        """Return the identity; raises AuthError for a missing, repeated, malformed, expired or unknown token."""
        identity = self._identify(metadata)
        if self._only not in ("", identity.tenant):
            raise AuthError(f"this server shares its memory with tenant {self._only}, and lets in others once it was restarted")
        return identity

    def _identify(self, metadata: Metadata) -> Identity:
        token = _bearer(metadata, MAX_JWT_LENGTH if self._jwt else MAX_TOKEN_LENGTH)
        digest = _digest(token)
        found: Identity | None = None
        for known, identity in self._known().items():  # all of them, whichever matches
            if hmac.compare_digest(known, digest):
                found = identity
        if found is None and self._jwt is not None and token.count(".") == 2:
            return _of_claims(self._jwt.verify(token))
        if found is None:
            raise AuthError("the bearer token is not accepted here; use one from the server's tokens file")
        return found


def open_authenticator(tokens_file: Path, auth: AuthConfig) -> TokenAuthenticator:
    """Read the tokens file, and again when it changes; at the first start write one with a random token for the tenant "default".

    With `auth.jwks_file`, tokens signed by one of its keys are taken too. Raises ConfigError for a file that can't be used.
    """
    if not tokens_file.exists():
        create_tokens(tokens_file)
    tokens = Changing((tokens_file,), lambda: known_tokens(read_tokens(tokens_file)))
    return TokenAuthenticator(tokens.current, JwtVerifier(auth) if auth.jwks_file else None)


def known_tokens(credentials: Iterable[Credential]) -> Known:
    """Return digests and identities of the tokens of a tokens file."""
    return {
        (digest := _digest(c.token)): Identity(c.tenant, f"token on line {c.line}", c.is_admin, accepted_by=digest) for c in credentials
    }


def _of_claims(claims: Claims) -> Identity:
    return Identity(claims.tenant, claims.subject, claims.is_admin, claims.expires_s, claims.verified_by)


def _bearer(metadata: Metadata, most_chars: int) -> str:
    """Return the token of the one authorization entry."""
    values = [value for key, value in metadata if key == "authorization"]
    if len(values) != 1:
        raise AuthError("the call needs exactly one 'authorization: Bearer <token>'; set LARDER_TOKEN or use the server's tokens file")
    value = values[0] if isinstance(values[0], str) else ""
    if not value.lower().startswith(_SCHEME) or len(value) > len(_SCHEME) + most_chars:
        raise AuthError("the authorization is not of the form 'Bearer <token>'")
    return value[len(_SCHEME) :].strip()


def _digest(token: str) -> bytes:
    """Return what is compared instead of the token: always 32 bytes, so its length tells nothing."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
