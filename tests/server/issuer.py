"""An issuer of JSON Web Tokens, with keys of its own."""

from __future__ import annotations

import base64
import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from jwt.algorithms import ECAlgorithm

from kvstore.server.config import AuthConfig

ISSUER, AUDIENCE = "https://issuer.example", "larder"


@cache
def private_key(kid: str) -> EllipticCurvePrivateKey:
    """Return the private key of an id, the same in one run."""
    return generate_private_key(SECP256R1())


def public_jwk(kid: str, **more: Any) -> dict[str, Any]:
    """Return the entry of a JWKS for a key."""
    return {**ECAlgorithm.to_jwk(private_key(kid).public_key(), as_dict=True), "kid": kid, "use": "sig", "alg": "ES256", **more}


def write_jwks(path: Path, *kids: str) -> AuthConfig:
    """Write a JWKS file with the keys of these ids and return the configuration that takes their tokens."""
    path.write_text(json.dumps({"keys": [public_jwk(kid) for kid in kids]}))
    return AuthConfig(jwks_file=str(path), issuer=ISSUER, audience=AUDIENCE)


def claims(**changed: Any) -> dict[str, Any]:
    """Return the claims of a token that is valid for a minute; a value of None leaves the claim out."""
    now = int(time.time())
    all_claims = {"iss": ISSUER, "aud": AUDIENCE, "nbf": now - 5, "exp": now + 60, "sub": "service-7", "tenant": "alpha", **changed}
    return {name: value for name, value in all_claims.items() if value is not None}


def make_token(kid: str = "first", headers: dict[str, Any] | None = None, **changed: Any) -> str:
    """Return a signed token."""
    return jwt.encode(claims(**changed), private_key(kid), algorithm="ES256", headers={"kid": kid, **(headers or {})})


def unsigned(header: dict[str, Any], payload: dict[str, Any], signature: bytes = b"") -> str:
    """Return a token put together by hand."""
    parts = (json.dumps(header).encode(), json.dumps(payload).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)
