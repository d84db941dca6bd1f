"""The master secret: made once, kept to its owner, never repeated in a message."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvstore.core.errors import ConfigError
from kvstore.store.secret import load_secret, parse_secret


def test_a_secret_is_made_once_and_kept_to_its_owner(tmp_path: Path) -> None:
    """A second start reads the first one's; another directory has another."""
    path = tmp_path / "state" / "secret"
    first = load_secret(path)
    assert (load_secret(path), len(first), stat.S_IMODE(path.stat().st_mode)) == (first, 32, 0o600)
    assert load_secret(tmp_path / "other") != first


def test_many_starts_at_once_agree_on_one_secret(tmp_path: Path) -> None:
    """Whoever is first wins, and no half-written file is ever read."""
    with ThreadPoolExecutor(8) as threads:
        secrets = set(threads.map(load_secret, [tmp_path / "secret"] * 16))
    assert len(secrets) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_a_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """The message gives the mode and the command."""
    path = tmp_path / "secret"
    load_secret(path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="mode 0644, so others may read it; run: chmod 600"):
        load_secret(path)


@pytest.mark.parametrize("text", ["", "abcdef", "zz" * 32, "ab" * 33])
def test_a_malformed_secret_is_refused_without_repeating_it(text: str) -> None:
    """Messages end in logs."""
    with pytest.raises(ConfigError, match="64 hex digits") as refusal:
        parse_secret(text)
    assert not text or text not in str(refusal.value)


def test_a_configured_secret_may_end_with_a_line_end() -> None:
    """It often comes from a mounted file."""
    assert parse_secret("ab" * 32 + "\n") == b"\xab" * 32
