"""JSON Web Tokens as identities: signed by a key of a JWKS file, for this audience, of this issuer, and not for long.

RFC 7519 says what a token is, RFC 7517 what the file is, RFC 8725 what verifying must not do: the algorithm is the key's, never the token's
choice, and no secret that both sides share is taken for a key.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from jwt.exceptions import (
    ExpiredSignatureError,
    ImmatureSignatureError,
    InvalidAudienceError,
    InvalidIssuerError,
    InvalidSignatureError,
    MissingRequiredClaimError,
    PyJWTError,
)

from kvstore.core.errors import AuthError, ConfigError
from kvstore.core.tokens import ADMIN, is_tenant
from kvstore.server.config import AuthConfig
from kvstore.store.changing import Changing

MAX_JWT_LENGTH = 8192
MAX_SUBJECT_CHARS = 256
MIN_RSA_BITS = 2048
ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"})
_MAX_FILE_NBYTES = 1 << 20
_REMEMBERED = 4096  # accepted tokens whose signature is not checked again
_REQUIRED = ("exp", "nbf", "iss", "aud")
_WRONG_INPUT = (PyJWTError, ValueError, TypeError, ArithmeticError, AttributeError, LookupError, RecursionError)
_REASONS: tuple[tuple[type[PyJWTError], str], ...] = (
    (ExpiredSignatureError, "has expired; get a new one"),
    (ImmatureSignatureError, "is not valid yet; compare the clocks"),
    (InvalidAudienceError, "is meant for another audience than auth.audience"),
    (InvalidIssuerError, "is of another issuer than auth.issuer"),
    (MissingRequiredClaimError, f"lacks one of the claims {', '.join(_REQUIRED)}"),
    (InvalidSignatureError, "has a signature that does not match its key"),
)


@dataclass(frozen=True)
class Claims:
    """What a verified token says; `expires_s` is seconds since the epoch, `verified_by` the set of keys that was in force."""

    tenant: str
    subject: str
    is_admin: bool
    expires_s: float
    verified_by: object


@dataclass(frozen=True)
class _Keys:
    """Keys by their id, and what was accepted under exactly these keys."""

    by_id: Mapping[str, jwt.PyJWK]
    accepted: dict[bytes, Claims] = field(default_factory=dict)


class JwtVerifier:
    """Verifies tokens; reads the JWKS file again when it changes. Thread-safe.

    A token that was accepted is remembered by its digest, for as long as it is valid and the file stays as it is.
    """

    def __init__(self, settings: AuthConfig, clock: Callable[[], float] = time.time) -> None:
        file = Path(settings.jwks_file).expanduser()
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._keys = Changing((file,), lambda: _Keys(read_jwks(file)))

    @property
    def keys(self) -> object:
        """The set of keys in force, another object whenever the file has changed."""
        return self._keys.current()

    def verify(self, token: str) -> Claims:
        """Return what a token says; raises AuthError that says what is wrong with it, and quotes nothing of it."""
        keys, digest = self._keys.current(), hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        known = keys.accepted.get(digest)
        if known is not None and self._clock() < known.expires_s:
            return known
        claims = self._verify(keys, token)
        with self._lock:
            if len(keys.accepted) >= _REMEMBERED:
                keys.accepted.clear()
            keys.accepted[digest] = claims
        return claims

    def _verify(self, keys: _Keys, token: str) -> Claims:
        """Check signature and claims of a token that is not known."""
        wanted = self._settings
        try:
            key = keys.by_id.get(jwt.get_unverified_header(token).get("kid", ""))
            if key is None:
                raise AuthError("the token names no key of auth.jwks_file; its issuer may have changed keys: replace the file")
            payload = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                audience=wanted.audience,
                issuer=wanted.issuer,
                leeway=wanted.leeway_s,
                options={"require": list(_REQUIRED)},
            )
            return self._read(payload, keys)
        except _WRONG_INPUT as error:
            why = next((text for kind, text in _REASONS if isinstance(error, kind)), "is not a JWT that this server can read")
            raise AuthError(f"the token {why}") from error

    def _read(self, payload: Mapping[str, Any], keys: _Keys) -> Claims:
        """Return the claims of a token whose signature, times, issuer and audience are right."""
        tenant, roles = payload.get(self._settings.tenant_claim), payload.get(self._settings.role_claim, ())
        if not isinstance(tenant, str) or not is_tenant(tenant):
            raise AuthError(f"the token's claim {self._settings.tenant_claim!r} is not the name of a tenant")
        is_admin = roles == ADMIN or (isinstance(roles, list) and ADMIN in roles)
        expires_s = float(payload["exp"]) + self._settings.leeway_s
        return Claims(tenant, str(payload.get("sub", ""))[:MAX_SUBJECT_CHARS], is_admin, expires_s, keys)


def read_jwks(path: Path) -> dict[str, jwt.PyJWK]:
    """Return the keys of a JWKS file by their ids; raises ConfigError for a file that can't be used as a whole."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_NBYTES + 1)
    except OSError as error:
        raise ConfigError(f"auth.jwks_file {path}: {error.strerror}") from error
    return parse_jwks(data, str(path))


def parse_jwks(data: bytes, name: str) -> dict[str, jwt.PyJWK]:
    """Return the keys of a JWKS called `name`; raises ConfigError."""
    if len(data) > _MAX_FILE_NBYTES:
        raise ConfigError(f"auth.jwks_file {name}: more than {_MAX_FILE_NBYTES} B")
    try:
        entries = json.loads(data)["keys"]
        if not isinstance(entries, list) or not entries:
            raise ConfigError(f"auth.jwks_file {name}: 'keys' is not a list of keys")
        keys = [_parse_key(entry, f"auth.jwks_file {name}, key {number}") for number, entry in enumerate(entries, 1)]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ConfigError(f"auth.jwks_file {name}: not a JWKS, which is {{'keys': [...]}}") from error
    found = {str(key.key_id): key for key in keys}
    if len(found) != len(keys):
        raise ConfigError(f"auth.jwks_file {name}: two keys have the same kid")
    return found


def _parse_key(entry: Any, where: str) -> jwt.PyJWK:
    """Return one public key; raises ConfigError for any other entry."""
    if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str) or not entry["kid"]:
        raise ConfigError(f"{where}: has no kid, by which tokens name their key")
    if entry.get("kty") == "oct" or "d" in entry:
        raise ConfigError(f"{where}: holds a secret; put the public half of a key pair there")
    if entry.get("use", "sig") != "sig":
        raise ConfigError(f"{where}: is for use {entry['use']!r}, not for signatures")
    try:
        key = jwt.PyJWK(entry)
    except _WRONG_INPUT as error:
        raise ConfigError(f"{where}: can't be read as a key") from error
    if key.algorithm_name not in ALGORITHMS:
        raise ConfigError(f"{where}: algorithm {key.algorithm_name} is not one of {', '.join(sorted(ALGORITHMS))}")
    if getattr(key.key, "key_size", MIN_RSA_BITS) < MIN_RSA_BITS and entry["kty"] == "RSA":
        raise ConfigError(f"{where}: an RSA key of {key.key.key_size} bits; at least {MIN_RSA_BITS} are needed")
    return key
