"""The command line against a fake server: what each verb prints for programs and for people, and its exit code."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kvclient.cli.checks import Finding
from kvclient.cli.main import main
from kvclient.requests import READ_AS
from kvstore.core.errors import ForbiddenError, InvalidInputError, KVError
from tests.client.fake_server import FakeServer

TEXT = "Thornham stores marble.\n\nIt sells the marble.\n"


class Result(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """The lines of JSON."""
        return [json.loads(line) for line in self.out.splitlines()]


Larder = Callable[..., Result]


@pytest.fixture
def larder(server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Larder:
    """Return a function that runs one command against the server."""
    monkeypatch.setenv("LARDER_ADDRESS", server.address)

    def run(*argv: str) -> Result:
        code = main(argv)
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the one check that starts another interpreter and imports torch."""
    monkeypatch.setattr("kvclient.cli.doctor.check_gpu", lambda: Finding("gpu", "ok", "none"))


@pytest.fixture
def ids(server: FakeServer) -> list[str]:
    """Store two passages and return their ids."""
    return [server.add_passage("notes.txt", i, text)[0].id for i, text in enumerate(("one two three", "four fives"))]


def test_ingest_stores_the_paragraphs_of_a_file(larder: Larder, server: FakeServer, tmp_path: Path) -> None:
    """The document's name is its path."""
    file = tmp_path / "notes.txt"
    file.write_text(TEXT)
    result = larder("ingest", str(file), "--json")
    assert result.code == 0
    assert [r["index"] for r in result.records] == [0, 1]
    assert set(result.records[0]) == {"id", "source", "index", "n_tokens", "preview", "computed", "nbytes", "tokens_read"}
    assert list(server.requests["Ingest"].passages) == ["Thornham stores marble.", "It sells the marble."]
    assert result.records[0]["source"] == file.as_posix()


def test_ingest_reads_the_text_files_of_a_folder_in_order(larder: Larder, tmp_path: Path) -> None:
    """Other files of the folder are left alone."""
    for name in ("b.md", "a.txt", "c.png"):
        (tmp_path / name).write_text(f"the text of {name}")
    result = larder("ingest", str(tmp_path), "--passages", "whole", "--read-as", "alone", "--json")
    assert [Path(r["source"]).name for r in result.records] == ["a.txt", "b.md"]


def test_ingest_shows_people_a_table_and_a_sum(larder: Larder, tmp_path: Path) -> None:
    """The ids are there to be copied."""
    (tmp_path / "notes.txt").write_text(TEXT)
    result = larder("ingest", str(tmp_path / "notes.txt"))
    assert "notes.txt#1" in result.out
    assert "2 passages of 1 document, 2 computed now (7 tokens read)" in result.out


@pytest.mark.parametrize("read_as", ["document", "alone", "both"])
def test_ingest_says_how_to_read(larder: Larder, server: FakeServer, tmp_path: Path, read_as: str) -> None:
    """In the document where nothing is said."""
    (tmp_path / "notes.txt").write_text(TEXT)
    larder("ingest", str(tmp_path / "notes.txt"), "--read-as", read_as)
    assert server.requests["Ingest"].read_as == READ_AS[read_as]


@pytest.mark.parametrize(
    ("content", "words"), [(None, "does not exist"), (b"\n\n", "holds no text"), (b"caf\xe9", "not UTF-8 text: byte 3 is 0xe9")]
)
def test_ingest_refuses_what_it_cannot_read(larder: Larder, tmp_path: Path, content: bytes | None, words: str) -> None:
    """Nothing is sent, and the exit code says that the command was wrong."""
    file = tmp_path / "notes.txt"
    if content is not None:
        file.write_bytes(content)
    result = larder("ingest", str(file), "--json")
    assert (result.code, result.out) == (2, "")
    assert words in result.err


def test_ask_prints_a_line_per_token_and_then_the_report(larder: Larder, ids: list[str]) -> None:
    """Programs read tokens as they come, too."""
    result = larder("ask", "What?", "--context", f"{ids[1]},notes.txt#0", "--json", "--planner", "always_load")
    kinds = [r["kind"] for r in result.records]
    assert (result.code, kinds) == (0, ["token"] * 4 + ["report"])
    report = result.records[-1]
    assert [row["passage"]["id"] for row in report["passages"]] == [ids[1], ids[0]]
    assert report["planner"] == "always_load"
    assert set(report["ttft_split_s"]) == {"lookup", "plan", "load", "prefill"}


def test_ask_shows_people_the_answer_and_a_row_per_passage(larder: Larder, ids: list[str]) -> None:
    """Characters that steer a terminal are made harmless."""
    result = larder("ask", "What?", "--context", ",".join(ids))
    assert result.out.startswith("marble\N{REPLACEMENT CHARACTER}[31m.\n")
    assert "notes.txt#0" in result.out
    assert "first token after 875.0 ms" in result.out
    assert "\x1b" not in result.out


def test_ask_shows_what_a_target_for_the_first_token_changed(larder: Larder, server: FakeServer, ids: list[str]) -> None:
    """Without one there is nothing to show."""
    result = larder("ask", "What?", "--context", ids[0], "--ttft-target", "1.5")
    assert server.requests["Ask"].ttft_target_s == 1.5
    assert "\na first token in 1.5 s\n" in result.out
    assert "a first token in" not in larder("ask", "What?", "--context", ids[0]).out


@pytest.mark.parametrize("read_as", ["auto", "document", "alone"])
def test_ask_says_which_readings_may_be_loaded(larder: Larder, server: FakeServer, ids: list[str], read_as: str) -> None:
    """And the report has the reading of each passage."""
    result = larder("ask", "What?", "--context", ids[0], "--read-as", read_as, "--json")
    assert server.requests["Ask"].read_as == READ_AS[read_as]
    assert result.records[-1]["passages"][0]["read_as"] == ("document" if read_as == "auto" else read_as)


def test_ls_lists_passages_and_chunks(larder: Larder, ids: list[str]) -> None:
    """Each line says what it is."""
    result = larder("ls", "--json")
    assert [r["kind"] for r in result.records] == ["passage", "passage", "chunk", "chunk"]
    assert result.records[2]["content"] == ids[0]
    assert result.records[2]["tiers"] == ["memory", "disk"]
    assert "512 B" in larder("ls").out or "KiB" in larder("ls").out


def test_stats_gives_tiers_and_counters(larder: Larder) -> None:
    """A tier that is down is shown as such."""
    result = larder("stats", "--json")
    assert [(r["kind"], r["name"]) for r in result.records] == [
        ("tier", "memory"),
        ("tier", "redis"),
        ("counter", "hits"),
        ("counter", "misses"),
    ]
    assert "DOWN" in larder("stats").out


def test_get_shows_the_manifest_and_saves_the_very_bytes(larder: Larder, server: FakeServer, ids: list[str], tmp_path: Path) -> None:
    """What is written is what is stored."""
    file = tmp_path / "chunk"
    result = larder("get", "notes.txt#0", "-o", str(file), "--json")
    [record] = result.records
    assert (record["content"], record["tier"], record["n_tokens"]) == (ids[0], "memory", 3)
    assert file.read_bytes() == server.blobs[server.key_of(ids[0])]


def test_get_of_a_chunk_that_is_gone_is_a_miss(larder: Larder, server: FakeServer, ids: list[str]) -> None:
    """Exit code 3, and the store's reason."""
    server.blobs.clear()
    result = larder("get", ids[0], "--json")
    assert (result.code, result.out) == (3, "")
    assert "never_stored" in result.err


def test_rm_removes_chunks_by_the_start_of_their_id(larder: Larder, server: FakeServer, ids: list[str]) -> None:
    """And says how many there were."""
    result = larder("rm", ids[0][:8], "notes.txt#1", "--json")
    assert (result.code, result.records, server.blobs) == (0, [{"deleted": 2}], {})


def test_rm_removes_a_passage_in_both_readings(larder: Larder, server: FakeServer, ids: list[str]) -> None:
    """What was asked to go must not stay under its other key."""
    larder("rm", ids[0], "--json")
    assert server.calls["Resolve"] == 2


def test_forget_takes_documents_back(larder: Larder, server: FakeServer, ids: list[str]) -> None:
    """3 says that none of them was known."""
    result = larder("forget", "other.txt", "notes.txt", "--json")
    assert (result.code, result.records) == (0, [{"source": "other.txt", "n_chunks": 0}, {"source": "notes.txt", "n_chunks": 2}])
    assert server.passages == {}
    assert larder("forget", "notes.txt").code == 3


def test_rm_of_an_unknown_id_is_not_found(larder: Larder) -> None:
    """Neither the worker nor the store knows it."""
    result = larder("rm", "0123456789abcdef")
    assert result.code == 3
    assert result.err == "larder: nothing is stored under 0123456789abcdef\n"


@pytest.mark.parametrize("argv", [("source", "a.txt"), ("model", "ab"), ("tenant",)])
def test_invalidate_sends_its_scope(larder: Larder, server: FakeServer, argv: Sequence[str]) -> None:
    """And prints the epoch that begins."""
    result = larder("invalidate", *argv, "--json")
    assert result.records == [{"kind": argv[0], "value": "".join(argv[1:]), "epoch": 1}]
    assert server.scopes[0].kind == argv[0]


@pytest.mark.parametrize("argv", [("source",), ("model",), ("tenant", "everyone")])
def test_invalidate_refuses_a_scope_that_is_not_one(larder: Larder, argv: Sequence[str]) -> None:
    """A forgotten value must not widen the scope."""
    assert larder("invalidate", *argv).code == 2


def test_explain_takes_a_request_or_a_chunk(larder: Larder, ids: list[str]) -> None:
    """Nothing at all means the latest request."""
    assert larder("explain", "--json").records[0]["kind"] == "request"
    assert larder("explain", "r-1", "--json").records[0]["lines"] == ["loading was cheaper"]
    [chunk] = larder("explain", ids[0], "--json").records
    assert (chunk["kind"], chunk["status"], chunk["tenant_epoch"], chunk["lines"]) == ("chunk", "ready", 1, ["memory: looked"])


@pytest.mark.parametrize("name", ["r-9", "deadbeef"])
def test_explain_says_that_it_looked_for_a_request_and_for_a_chunk(larder: Larder, ids: list[str], name: str) -> None:
    """Whoever mistypes a request's id must not be told about passages alone."""
    result = larder("explain", name)
    assert result.code == 3
    assert "request" in result.err
    assert "; and as a chunk: " in result.err


def test_ping_prints_the_round_trip(larder: Larder, server: FakeServer) -> None:
    """For a script's health check."""
    [record] = larder("ping", "--json").records
    assert record["address"] == server.address
    assert record["seconds"] > 0


def test_a_store_without_a_worker_can_be_looked_into(
    store_only: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its chunks have ids but no names."""
    passage_id = store_only.add_passage("notes.txt", 0, "one two three")[0].id
    monkeypatch.setenv("LARDER_ADDRESS", store_only.address)
    assert main(["ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["content"] == passage_id
    assert main(["rm", passage_id[:12], "--json"]) == 0
    assert main(["rm", "notes.txt#0"]) == 2
    assert main(["ask", "What?", "--context", "notes.txt#0"]) == 1
    assert "a store without a worker" in capsys.readouterr().err
    assert store_only.blobs == {}


@pytest.mark.parametrize(
    ("error", "code"), [(InvalidInputError("no"), 2), (ForbiddenError("no"), 5)], ids=lambda value: type(value).__name__
)
def test_an_error_of_the_server_is_one_line_and_its_exit_code(larder: Larder, server: FakeServer, error: KVError, code: int) -> None:
    """No traceback, whatever happens."""
    server.faults["Stats"] = [error]
    result = larder("stats")
    assert (result.code, result.err) == (code, "larder: no\n")


def test_an_unreachable_server_is_exit_code_4(larder: Larder) -> None:
    """A script can tell it from a miss."""
    result = larder("ping", "--address", "127.0.0.1:1", "--timeout", "1")
    assert result.code == 4
    assert "doctor" in result.err


def test_a_missing_token_is_exit_code_5(larder: Larder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Denied before anything is sent."""
    monkeypatch.delenv("LARDER_TOKEN")
    assert larder("ls", "--address", "203.0.113.1:1").code == 5


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "larder: the following arguments are required: VERB; see `larder --help`"),
        (["ask", "What?"], "larder ask: the following arguments are required: --context; see `larder ask --help`"),
        (["ls", "--timeout", "-1"], "larder ls: argument --timeout: '-1' is not a number of seconds above 0; see `larder ls --help`"),
        (["ls", "--limit", "few"], "larder ls: argument --limit: 'few' is not a whole number above 0; see `larder ls --help`"),
        (["ls", "--colour"], "larder: unrecognized arguments: --colour; see `larder --help`"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(larder: Larder, capsys: pytest.CaptureFixture[str], argv: list[str], said: str) -> None:
    """What else could be written is a page, which nobody asked for."""
    with pytest.raises(SystemExit) as ended:
        larder(*argv)
    assert (ended.value.code, capsys.readouterr().err) == (2, f"{said}\n")


def test_an_unknown_verb_is_refused_with_the_known_ones(larder: Larder, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of other packages too."""
    with pytest.raises(SystemExit):
        larder("steal")
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "'stats', " in err


@pytest.mark.parametrize(("file", "why"), [(".", "it is a folder"), ("no/such/place", "there is no folder")])
def test_get_refuses_a_file_that_can_not_be_written_before_it_fetches(
    larder: Larder, server: FakeServer, ids: list[str], file: str, why: str, tmp_path: Path
) -> None:
    """A chunk may be large."""
    result = larder("get", ids[0], "-o", str(tmp_path / file))
    assert (result.code, result.out) == (2, "")
    assert why in result.err


def test_doctor_finds_a_server_that_serves_and_a_tier_that_is_down(larder: Larder, no_gpu: None) -> None:
    """A tier that is down costs time, not answers: it is a warning."""
    result = larder("doctor", "--json")
    states = {r["check"]: r["state"] for r in result.records}
    assert result.code == 0
    assert {states[name] for name in ("python", "token", "server", "worker", "tier memory", "clock")} == {"ok"}
    assert states["tier redis"] == "warn"


def test_doctor_says_what_to_do_about_a_server_that_is_not_there(larder: Larder, no_gpu: None) -> None:
    """Exit code 1."""
    result = larder("doctor", "--json", "--address", "127.0.0.1:1", "--timeout", "1")
    [server] = [r for r in result.records if r["check"] == "server"]
    assert (result.code, server["state"]) == (1, "fail")
    assert "larder up" in server["advice"]
