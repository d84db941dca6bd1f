"""JSON Web Tokens: which are taken, and which never are."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from kvstore.core.errors import AuthError, ConfigError
from kvstore.server.access.auth import TokenAuthenticator, open_authenticator
from kvstore.server.access.jwt_tokens import JwtVerifier, parse_jwks
from kvstore.server.config import AuthConfig
from tests.server.issuer import claims, make_token, private_key, public_jwk, unsigned, write_jwks


@pytest.fixture
def verifier(tmp_path: Path) -> JwtVerifier:
    """Takes the tokens of the key "first"."""
    return JwtVerifier(write_jwks(tmp_path / "jwks.json", "first"))


def test_a_token_of_the_issuer_stands_for_the_tenant_that_it_names(verifier: JwtVerifier) -> None:
    """And for its subject, which the audit log tells."""
    found = verifier.verify(make_token(tenant="team-a"))
    assert (found.tenant, found.subject, found.is_admin) == ("team-a", "service-7", False)


ROLES = [("admin", True), (["reader", "admin"], True), ("administrator", False), (["reader"], False), (1, False)]


@pytest.mark.parametrize(("role", "is_admin"), ROLES)
def test_a_token_is_an_admins_when_its_role_says_so_exactly(verifier: JwtVerifier, role: object, is_admin: bool) -> None:
    """One role, or a list of them."""
    assert verifier.verify(make_token(role=role)).is_admin is is_admin


def hmac_of_public_key() -> str:
    """Return a token whose HMAC is keyed with what everybody knows, as verifiers that trust the token's algorithm accept."""
    pem = private_key("first").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    head = unsigned({"alg": "HS256", "kid": "first"}, claims()).rpartition(".")[0]
    return unsigned({"alg": "HS256", "kid": "first"}, claims(), hmac.digest(pem, head.encode(), hashlib.sha256))


def changed_payload() -> str:
    """Return a token with the signature of another one."""
    return make_token().rpartition(".")[0].split(".")[0] + "." + make_token(tenant="beta").split(".")[1] + "." + make_token().split(".")[2]


NOW = int(time.time())
FORGED: dict[str, Callable[[], str]] = {
    "another key": lambda: make_token("stranger", headers={"kid": "first"}),
    "an unknown key id": lambda: make_token("stranger"),
    "no key id": lambda: unsigned({"alg": "ES256"}, claims(), b"x" * 64),
    "a key id that is a list": lambda: unsigned({"alg": "ES256", "kid": ["first"]}, claims(), b"x" * 64),
    "no algorithm": lambda: unsigned({"alg": "none", "kid": "first"}, claims()),
    "an HMAC of the public key": hmac_of_public_key,
    "the signature of another token": changed_payload,
    "expired": lambda: make_token(exp=NOW - 60),
    "not valid yet": lambda: make_token(nbf=NOW + 3600),
    "another audience": lambda: make_token(aud="payroll"),
    "another issuer": lambda: make_token(iss="https://elsewhere.example"),
    "no expiry": lambda: make_token(exp=None),
    "no start": lambda: make_token(nbf=None),
    "no audience": lambda: make_token(aud=None),
    "no issuer": lambda: make_token(iss=None),
    "no tenant": lambda: make_token(tenant=None),
    "a tenant that is a path": lambda: make_token(tenant="../alpha"),
    "a tenant that is a list": lambda: make_token(tenant=["alpha"]),
    "an expiry that is no number": lambda: make_token(exp="soon"),
    "noise": lambda: "a.b.c",
    "a header that is a list": lambda: unsigned([], claims()),  # type: ignore[arg-type]
    "a deep header": lambda: "W" * 4000 + ".e30.x",
}


@pytest.mark.parametrize("kind", FORGED)
def test_any_other_token_is_refused_and_not_quoted(verifier: JwtVerifier, kind: str) -> None:
    """By a typed error whose text may end in a log."""
    token = FORGED[kind]()
    with pytest.raises(AuthError) as caught:
        verifier.verify(token)
    assert not any(part and part in str(caught.value) for part in token.split(".") if len(part) > 8)


def test_a_token_that_was_accepted_is_verified_again_once_its_time_is_over(tmp_path: Path) -> None:
    """What was verified before is remembered by its digest, and its time still counts."""
    moment = [0.0]
    settings = write_jwks(tmp_path / "jwks.json", "first")
    verifier = JwtVerifier(settings, clock=lambda: moment[0])
    token = make_token()
    found = verifier.verify(token)
    assert found is verifier.verify(token)
    moment[0] = found.expires_s
    assert verifier.verify(token) is not found


def test_a_token_is_taken_a_little_while_longer_than_it_says(verifier: JwtVerifier) -> None:
    """Clocks differ."""
    exp = int(time.time()) - 5
    assert verifier.verify(make_token(exp=exp)).expires_s == exp + 10


def test_keys_are_read_again_when_the_file_changes(tmp_path: Path) -> None:
    """A key that was taken out opens nothing any more, not even for a token that was accepted before."""
    file = tmp_path / "jwks.json"
    verifier = JwtVerifier(write_jwks(file, "first"))
    old, new = make_token("first"), make_token("second")
    assert verifier.verify(old).tenant == "alpha"
    write_jwks(file, "second", "third")
    assert verifier.verify(new).tenant == "alpha"
    with pytest.raises(AuthError, match=r"auth\.jwks_file"):
        verifier.verify(old)


def test_a_caller_remains_until_its_token_expires_or_keys_change(tmp_path: Path) -> None:
    """Then it shows its token again, or a fresh one."""
    moment = [time.time()]
    settings = write_jwks(tmp_path / "jwks.json", "first")
    authenticate = TokenAuthenticator(dict, JwtVerifier(settings), clock=lambda: moment[0])
    caller = authenticate([("authorization", f"Bearer {make_token()}")])
    assert authenticate.still_accepts(caller)
    write_jwks(tmp_path / "jwks.json", "first", "second")
    assert not authenticate.still_accepts(caller)
    caller = authenticate([("authorization", f"Bearer {make_token()}")])
    moment[0] = caller.expires_s
    assert not authenticate.still_accepts(caller)


def test_a_spoilt_file_leaves_the_keys_in_force(tmp_path: Path) -> None:
    """Half a file, or none, is a mistake."""
    file = tmp_path / "jwks.json"
    verifier = JwtVerifier(write_jwks(file, "first"))
    file.write_text('{"keys": [')
    assert verifier.verify(make_token()).tenant == "alpha"
    file.unlink()
    assert verifier.verify(make_token()).tenant == "alpha"


def rsa_jwk(bits: int) -> dict[str, Any]:
    """Return an RSA key of so many bits."""
    public = generate_private_key(65537, bits).public_key()
    return {**RSAAlgorithm.to_jwk(public, as_dict=True), "kid": "rsa", "alg": "RS256"}


SPOILT: dict[str, Callable[[], object]] = {
    "no keys": lambda: {"keys": []},
    "keys that are no list": lambda: {"keys": {}},
    "a list": list,
    "a key without a kid": lambda: {"keys": [{**public_jwk("first"), "kid": ""}]},
    "a kid twice": lambda: {"keys": [public_jwk("first"), public_jwk("first")]},
    "a shared secret": lambda: {"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "x", "alg": "HS256"}]},
    "a private key": lambda: {"keys": [{**ECAlgorithm.to_jwk(private_key("first"), as_dict=True), "kid": "first"}]},
    "a key for encryption": lambda: {"keys": [public_jwk("first", use="enc")]},
    "an algorithm with a shared secret": lambda: {"keys": [public_jwk("first", alg="HS256")]},
    "a short RSA key": lambda: {"keys": [rsa_jwk(1024)]},
    "an entry that is no key": lambda: {"keys": ["first"]},
    "a curve that is none": lambda: {"keys": [public_jwk("first", crv="P-255")]},
    "a point off the curve": lambda: {"keys": [public_jwk("first", x="AAAA")]},
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_file_with_anything_but_public_keys_is_refused_as_a_whole(kind: str) -> None:
    """Half a set of keys would refuse half of the callers."""
    with pytest.raises(ConfigError, match=r"auth\.jwks_file test"):
        parse_jwks(json.dumps(SPOILT[kind]()).encode(), "test")


@pytest.mark.parametrize("data", [b"", b"\xff", b"[" * 100_000, b"{" + b" " * (1 << 20) + b"}"], ids=["nothing", "noise", "deep", "long"])
def test_a_file_that_is_no_json_is_refused(data: bytes) -> None:
    """Before anything of it is believed."""
    with pytest.raises(ConfigError, match=r"auth\.jwks_file test"):
        parse_jwks(data, "test")


def test_an_rsa_key_of_today_is_taken() -> None:
    """The shortest that is."""
    assert set(parse_jwks(json.dumps({"keys": [rsa_jwk(2048)]}).encode(), "test")) == {"rsa"}


def test_both_kinds_of_token_open_one_server(tmp_path: Path) -> None:
    """A static one for the worker itself, signed ones for people and services."""
    auth = write_jwks(tmp_path / "jwks.json", "first")
    (tmp_path / "tokens").write_text(f"own {'t' * 32}\n")
    (tmp_path / "tokens").chmod(0o600)
    authenticate = open_authenticator(tmp_path / "tokens", auth)
    tokens = ("t" * 32, make_token(tenant="theirs"))
    assert [authenticate([("authorization", f"Bearer {token}")]).tenant for token in tokens] == ["own", "theirs"]
    assert not authenticate.admit_only_tenant()


@pytest.mark.parametrize("given", [{"jwks_file": "x"}, {"jwks_file": "x", "issuer": "y"}, {"leeway_s": 61.0}, {"tenant_claim": ""}])
def test_settings_that_would_let_in_too_many_are_refused(given: dict[str, Any]) -> None:
    """Tokens made for another service are signed by the same keys."""
    with pytest.raises(ConfigError, match=r"auth\."):
        AuthConfig(**given)
