"""The verbs of the command line against a running `larder up`: exit codes for scripts, JSON for programs, tables for people."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvclient.cli import exits
from kvclient.cli.main import main
from kvstore.core.blob import verify_blob
from tests.e2e.processes import Process, run

Records = list[dict[str, Any]]
Verb = Callable[..., Records]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of two documents that no other test stores, one of them in a folder of its own."""
    (tmp_path / "docs" / "deep").mkdir(parents=True)
    (tmp_path / "docs" / "a.txt").write_text(f"{tmp_path.name} exports salt.\n\nIt trusts Corwick.\n")
    (tmp_path / "docs" / "deep" / "b.md").write_text(f"{tmp_path.name} mends pumps.\n")
    return tmp_path / "docs"


@pytest.fixture
def verb(up: Process, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Verb:
    """Return a function that runs a verb with --json, checks its exit code and returns what it printed."""
    for name, value in up.client_env().items():
        monkeypatch.setenv(name, value)

    def act(*arguments: str, code: int = exits.OK) -> Records:
        assert main([*arguments, "--json"]) == code
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return act


def test_a_folder_is_ingested_once(verb: Verb, folder: Path) -> None:
    """Every file below it is a document, named by its path."""
    rows = verb("ingest", str(folder))
    assert [(row["source"], row["index"], row["computed"]) for row in rows] == [
        (f"{folder}/a.txt", 0, True),
        (f"{folder}/a.txt", 1, True),
        (f"{folder}/deep/b.md", 0, True),
    ]
    assert not any(row["computed"] for row in verb("ingest", str(folder)))


def test_a_question_is_answered_with_its_report_and_can_be_explained(verb: Verb, folder: Path) -> None:
    """By name or by the start of an id."""
    rows = verb("ingest", str(folder))
    *tokens, report = verb("ask", " What?", "--context", f"{rows[2]['id'][:10]},{folder}/a.txt#0", "--max-tokens", "4")
    assert [row["kind"] for row in (*tokens, report)] == ["token"] * len(tokens) + ["report"]
    assert len(tokens) == report["tokens_generated"]
    assert "".join(token["text"] for token in tokens) == report["text"]
    (explained,) = verb("explain", report["request_id"])
    assert explained["report"]["request_id"] == report["request_id"]
    assert len(explained["lines"]) == 5 + 2


def test_what_is_stored_is_listed_and_shown(verb: Verb, folder: Path, tmp_path: Path) -> None:
    """A saved chunk is the chunk, byte for byte."""
    rows = verb("ingest", str(folder))
    passages = verb("ls", "passages", "--source", f"{folder}/a.txt")
    assert [row["id"] for row in passages] == [row["id"] for row in rows[:2]]
    chunks = {row["content"]: row for row in verb("ls", "chunks")}
    assert {row["id"] for row in rows} <= set(chunks)
    (shown,) = verb("get", rows[0]["id"], "-o", str(tmp_path / "saved.chunk"))
    data = (tmp_path / "saved.chunk").read_bytes()
    assert verify_blob(data).manifest.content.hex() == rows[0]["id"] == shown["content"]
    assert len(data) == rows[0]["nbytes"] == shown["nbytes"]


def test_a_removed_chunk_is_a_miss_and_comes_back_when_it_is_read_again(verb: Verb, folder: Path) -> None:
    """3 says: not there."""
    name = verb("ingest", str(folder))[0]["id"]
    assert verb("rm", name) == [{"deleted": 1}]
    verb("get", name, code=exits.NOT_FOUND)
    (chunk,) = verb("explain", name, code=exits.NOT_FOUND)
    assert (chunk["status"], chunk["reason"]) == ("absent", "deleted")
    verb("rm", name, code=exits.NOT_FOUND)
    assert [row["computed"] for row in verb("ingest", str(folder))] == [True, False, False]


def test_an_invalidated_document_is_a_miss(verb: Verb, folder: Path) -> None:
    """Every chunk of it, and no other."""
    rows = verb("ingest", str(folder))
    verb("invalidate", "source", f"{folder}/a.txt")
    verb("get", rows[0]["id"], code=exits.NOT_FOUND)
    verb("get", rows[2]["id"])
    (chunk,) = verb("explain", rows[1]["id"], code=exits.NOT_FOUND)
    assert chunk["reason"] == "epoch"


def test_tiers_and_counters_are_shown(verb: Verb, folder: Path) -> None:
    """Memory and disk, with what is in them."""
    verb("ingest", str(folder))
    rows = verb("stats")
    tiers = {row["name"]: row for row in rows if row["kind"] == "tier"}
    assert set(tiers) == {"memory", "disk"}
    assert tiers["memory"]["entries"] >= 3
    assert all(tier["is_available"] and tier["used_bytes"] <= tier["capacity_bytes"] for tier in tiers.values())
    assert any(row["kind"] == "counter" for row in rows)


def test_a_server_that_serves_passes_ping_and_doctor(verb: Verb) -> None:
    """Nothing fails here."""
    assert verb("ping")[0]["seconds"] > 0
    findings = verb("doctor")
    assert {row["check"]: row["state"] for row in findings if row["check"] in ("server", "worker", "token", "tier memory")} == {
        "token": "ok",
        "server": "ok",
        "worker": "ok",
        "tier memory": "ok",
    }


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("ask", "What?", "--context", "nobody.txt#0"), exits.NOT_FOUND),
        (("ask", "What?", "--context", "no name"), exits.USAGE),
        (("ask", "What?", "--context", "00000000"), exits.NOT_FOUND),
        (("get", "0123456789abcdef"), exits.NOT_FOUND),
        (("rm", "0123456789abcdef"), exits.NOT_FOUND),
        (("explain", "0123456789abcdef"), exits.NOT_FOUND),
        (("ingest", "no/such/file.txt"), exits.USAGE),
        (("ping", "--address", "127.0.0.1:1", "--timeout", "2"), exits.UNREACHABLE),
        (("ls", "--token", "not-a-token-of-anybody"), exits.DENIED),
    ],
)
def test_what_goes_wrong_has_an_exit_code_and_one_line_on_stderr(
    up: Process, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int
) -> None:
    """Scripts read the code, people the line."""
    for name, value in up.client_env().items():
        monkeypatch.setenv(name, value)
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert (err.count("\n"), err.startswith("larder: ")) == (1, True)


def test_people_get_tables_and_tokens_as_they_come(up: Process, folder: Path) -> None:
    """As a process, with its output in a pipe."""
    done = run(up, "ingest", str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 passages of 2 documents" in done.stdout
    done = run(up, "ask", " What?", "--context", f"{folder}/a.txt#1", "--max-tokens", "3")
    assert (done.returncode, done.stderr) == (0, "")
    assert "a.txt#1" in done.stdout
