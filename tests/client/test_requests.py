"""Bad arguments are refused before anything is sent, and the message says what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvclient import Larder, requests
from kvstore.core.errors import AuthError, InvalidInputError
from tests.client.fake_server import TOKEN

ID = "0123456789abcdef"


@pytest.mark.parametrize(
    ("passages", "words"),
    [
        ([], "1 to 4096 items, got 0"),
        (["text", "  \n"], "passage 1 is empty"),
        ("one string", "must be a list of strings"),
        (["text", 3], r"passages\[1\] must be a string, got int"),
        (["x"] * 4097, "got 4097"),
        (["x" * 4_000_001], "4000001 B of text do not fit"),
        (["half a pair \ud800"], "not valid Unicode at character 12"),
    ],
)
def test_passages_that_cannot_be_ingested_are_refused(passages: Any, words: str) -> None:
    """A lone string would be read letter by letter; an empty passage has no KV."""
    with pytest.raises(InvalidInputError, match=words):
        requests.ingest_request("notes.txt", passages, "document")


@pytest.mark.parametrize(("source", "read_as", "words"), [("", "document", "source must be"), ("a", "auto", "document, alone, both")])
def test_an_ingest_needs_a_source_and_a_known_way_to_read(source: str, read_as: str, words: str) -> None:
    """Without a name nothing could be taken back."""
    with pytest.raises(InvalidInputError, match=words):
        requests.ingest_request(source, ["text"], read_as)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"passage_ids": []}, "1 to 4096 items"),
        ({"passage_ids": ["abc"]}, "at least 8 hex digits"),
        ({"question": " "}, "question must be"),
        ({"max_tokens": 0}, "max_tokens must be"),
        ({"max_tokens": True}, "max_tokens must be"),
        ({"max_tokens": 1.5}, "max_tokens must be"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"seed": -1}, "seed must be"),
        ({"ttft_target_s": -0.5}, "ttft_target_s must be 0 \\(the worker's\\) or more seconds, got -0.5"),
        ({"ttft_target_s": float("inf")}, "ttft_target_s must be"),
        ({"read_as": "both"}, "read_as must be one of auto, document, alone, got 'both'"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(changed: dict[str, Any], words: str) -> None:
    """Every message names the argument."""
    good = {
        "passage_ids": [ID],
        "question": "What?",
        "max_tokens": 4,
        "temperature": 0.0,
        "seed": 0,
        "policy": "",
        "planner": "",
        "read_as": "auto",
        "ttft_target_s": 0.0,
    }
    with pytest.raises(InvalidInputError, match=words):
        requests.ask_request(**{**good, **changed})


@pytest.mark.parametrize(("source", "model"), [("", ""), ("a.txt", "ab")])
def test_an_invalidation_names_one_scope(source: str, model: str) -> None:
    """An empty scope must never mean everything."""
    with pytest.raises(InvalidInputError, match="either the source or the model"):
        requests.scope(source, model)


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("nan"), float("inf")])
def test_a_deadline_that_is_none_is_refused(timeout_s: float) -> None:
    """Every call ends."""
    with pytest.raises(InvalidInputError, match="timeout_s must be"):
        Larder("127.0.0.1:1", TOKEN, timeout_s=timeout_s)


def test_a_client_without_a_token_says_how_to_give_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first thing that a new user forgets."""
    monkeypatch.delenv("LARDER_TOKEN")
    with pytest.raises(AuthError, match="LARDER_TOKEN"):
        Larder("203.0.113.1:1")


def test_a_client_without_a_server_is_told_how_to_start_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No tokens file is there before the first start."""
    monkeypatch.delenv("LARDER_TOKEN")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(AuthError, match="larder up"):
        Larder("127.0.0.1:1")


@pytest.mark.parametrize("token", ["of-a-file\n", "t\u00f6ken"])
def test_a_token_that_no_header_holds_is_refused_without_quoting_it(token: str) -> None:
    """gRPC would abort the call and print to standard error."""
    with pytest.raises(AuthError, match="pass the token alone") as raised:
        Larder("127.0.0.1:1", token)
    assert token not in str(raised.value)
