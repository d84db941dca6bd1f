"""Tokens: the file, and what a call must show."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from kvclient.channel import discover_token
from kvstore.core.errors import AuthError, ConfigError
from kvstore.core.tokens import Credential, create_tokens, read_tokens
from kvstore.server.access.auth import TokenAuthenticator, known_tokens, open_authenticator
from kvstore.server.config import AuthConfig

LOCAL = "127.0.0.1:7420"
NO_JWT = AuthConfig()


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    """Write a tokens file."""
    path.write_text(text)
    path.chmod(mode)
    return path


def test_the_first_start_writes_a_private_file_with_a_random_token(tmp_path: Path) -> None:
    """So a local client works out of the box and nobody else does."""
    files = [tmp_path / name / "tokens" for name in "ab"]
    for file in files:
        open_authenticator(file, NO_JWT)
    (first,), (second,) = (read_tokens(file) for file in files)
    assert (first.tenant, first.is_admin) == ("default", True)
    assert first.token != second.token
    assert stat.S_IMODE(files[0].stat().st_mode) == 0o600


def test_a_later_start_keeps_the_tokens(tmp_path: Path) -> None:
    """Clients outlive restarts."""
    file = tmp_path / "tokens"
    open_authenticator(file, NO_JWT)
    before = file.read_text()
    create_tokens(file)
    assert file.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    """The message says what to run."""
    with pytest.raises(ConfigError, match="chmod 600"):
        read_tokens(write(tmp_path / "tokens", "default " + "t" * 32, mode))


LONG = "t" * 32
MALFORMED = {
    "empty": "",
    "comment": "# nothing\n",
    "no token": "default\n",
    "short token": "default short\n",
    "bad tenant": f"ten/ant {LONG}",
    "three words": "a b c\n",
    "a role that is none": f"a {LONG} root\n",
    "four words": f"a {LONG} admin x\n",
    "long tenant": f"{'t' * 65} {LONG}",
    "long token": "a " + "t" * 600,
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_file_is_refused(tmp_path: Path, text: str) -> None:
    """Rather than read in part."""
    with pytest.raises(ConfigError):
        read_tokens(write(tmp_path / "tokens", text))


def test_a_malformed_line_is_named_by_its_number_and_not_quoted(tmp_path: Path) -> None:
    """An error message may end in a log."""
    with pytest.raises(ConfigError, match="line 2") as caught:
        read_tokens(write(tmp_path / "tokens", f"a {'t' * 32}\nb {'s' * 32} x\n"))
    assert "sss" not in str(caught.value)


def test_one_token_for_two_tenants_is_refused(tmp_path: Path) -> None:
    """It would be either."""
    with pytest.raises(ConfigError, match="same token"):
        read_tokens(write(tmp_path / "tokens", f"a {'t' * 32}\nb {'t' * 32}\n"))


def test_a_tenant_may_have_two_tokens(tmp_path: Path) -> None:
    """One replaces the other without a gap."""
    authenticate = open_authenticator(write(tmp_path / "tokens", f"a {'t' * 32}\na {'s' * 32}\n"), NO_JWT)
    assert [authenticate([("authorization", f"Bearer {c * 32}")]).tenant for c in "ts"] == ["a", "a"]


def test_a_token_has_the_role_of_its_line_and_is_told_by_the_line_only(tmp_path: Path) -> None:
    """What an audit line says of a caller must not help to become one."""
    authenticate = open_authenticator(write(tmp_path / "tokens", f"# tokens\na {'t' * 32}\na {'s' * 32} admin\n"), NO_JWT)
    callers = [authenticate([("authorization", f"Bearer {c * 32}")]) for c in "ts"]
    assert [(caller.is_admin, caller.subject) for caller in callers] == [(False, "token on line 2"), (True, "token on line 3")]


def test_a_token_that_was_taken_out_of_the_file_is_refused_at_once(tmp_path: Path) -> None:
    """And a new one is accepted, without a restart."""
    authenticate = open_authenticator(write(tmp_path / "tokens", f"a {'t' * 32}\n"), NO_JWT)
    write(tmp_path / "tokens", f"a {'s' * 32}\nb {'u' * 32}\n")
    assert authenticate([("authorization", "Bearer " + "s" * 32)]).tenant == "a"
    with pytest.raises(AuthError):
        authenticate([("authorization", "Bearer " + "t" * 32)])


def test_a_caller_remains_as_long_as_its_token_is_in_the_file(tmp_path: Path) -> None:
    """On whatever line; what is open for it ends with it."""
    authenticate = open_authenticator(write(tmp_path / "tokens", f"a {'t' * 32}\n"), NO_JWT)
    caller = authenticate([("authorization", "Bearer " + "t" * 32)])
    write(tmp_path / "tokens", f"# moved\nb {'u' * 32}\na {'t' * 32}\n")
    assert authenticate.still_accepts(caller)
    write(tmp_path / "tokens", f"b {'u' * 32}\na {'s' * 32} admin\n")
    assert not authenticate.still_accepts(caller)


def test_a_tenant_that_comes_later_is_not_let_in_where_memory_is_shared(tmp_path: Path) -> None:
    """Processes of the first one can read all of it, and nobody can take it away from them."""
    authenticate = open_authenticator(write(tmp_path / "tokens", f"a {'t' * 32}\n"), NO_JWT)
    assert authenticate.admit_only_tenant()
    write(tmp_path / "tokens", f"a {'s' * 32}\nb {'u' * 32}\n")
    assert authenticate([("authorization", "Bearer " + "s" * 32)]).tenant == "a"
    with pytest.raises(AuthError, match="restarted"):
        authenticate([("authorization", "Bearer " + "u" * 32)])


def test_a_file_with_two_tenants_lets_in_both(tmp_path: Path) -> None:
    """And shares no memory by itself."""
    authenticate = open_authenticator(write(tmp_path / "tokens", f"a {'t' * 32}\nb {'u' * 32}\n"), NO_JWT)
    assert not authenticate.admit_only_tenant()
    assert [authenticate([("authorization", f"Bearer {c * 32}")]).tenant for c in "tu"] == ["a", "b"]


def test_a_file_that_is_spoilt_leaves_the_tokens_in_force(tmp_path: Path) -> None:
    """A slip in an editor must not shut everybody out."""
    authenticate = open_authenticator(write(tmp_path / "tokens", f"a {'t' * 32}\n"), NO_JWT)
    write(tmp_path / "tokens", "a\n")
    assert authenticate([("authorization", "Bearer " + "t" * 32)]).tenant == "a"


def test_a_token_stands_for_its_tenant_and_no_other() -> None:
    """The scheme's case does not matter, the token's does."""
    known = known_tokens([Credential("a", "t" * 32), Credential("b", "s" * 32)])
    authenticate = TokenAuthenticator(lambda: known)
    assert authenticate([("authorization", "bearer " + "s" * 32)]).tenant == "b"
    with pytest.raises(AuthError):
        authenticate([("authorization", "Bearer " + "S" * 32)])


def test_a_credential_does_not_show_its_token() -> None:
    """Records end in logs."""
    assert "ttt" not in repr(Credential("a", "t" * 32))


def test_a_client_prefers_the_given_token_then_the_variable_then_the_file(tmp_path: Path) -> None:
    """The nearest wish counts."""
    create_tokens(tmp_path / "tokens")
    own = read_tokens(tmp_path / "tokens")[0].token
    assert discover_token(LOCAL, "given", tmp_path, {"LARDER_TOKEN": "variable"}) == "given"
    assert discover_token(LOCAL, "", tmp_path, {"LARDER_TOKEN": "variable"}) == "variable"
    assert discover_token(LOCAL, "", tmp_path, {}) == own


def test_a_client_never_sends_the_local_token_to_another_machine(tmp_path: Path) -> None:
    """It would give it away."""
    create_tokens(tmp_path / "tokens")
    with pytest.raises(AuthError, match="LARDER_TOKEN"):
        discover_token("store.example:7420", "", tmp_path, {})


def test_a_client_does_not_choose_between_tenants(tmp_path: Path) -> None:
    """Unless one is called default."""
    with pytest.raises(AuthError, match="several tenants"):
        discover_token(LOCAL, "", write(tmp_path / "tokens", f"a {'t' * 32}\nb {'s' * 32}\n").parent, {})
