"""`larder load` against a fake server."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvclient.cli.main import main
from kvstore.core.errors import TierUnavailableError
from tests.client.fake_server import TOKEN, FakeServer

FAST = ("--rate", "200", "--duration", "0.2", "--passages", "2")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """Serve, with the client's variables set."""
    fake = FakeServer()
    fake.start()
    monkeypatch.setenv("LARDER_ADDRESS", fake.address)
    monkeypatch.setenv("LARDER_TOKEN", TOKEN)
    yield fake
    fake.stop()


@pytest.fixture
def stored(server: FakeServer) -> FakeServer:
    """Store three passages."""
    for i in range(3):
        server.add_passage("notes.txt", i, f"one two {'three ' * i}")
    return server


Load = Callable[..., tuple[int, str, str]]


@pytest.fixture
def load(capsys: pytest.CaptureFixture[str]) -> Load:
    """Return a function that runs the command."""

    def run(*more: str) -> tuple[int, str, str]:
        code = main(["load", *FAST, *more])
        return code, *capsys.readouterr()

    return run


def test_a_load_is_one_record(stored: FakeServer, load: Load) -> None:
    """With everything that was counted, for programs."""
    code, out, _ = load("--json")
    (record,) = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert record["kind"] == "load"
    assert record["requests"] == record["answered"] == stored.calls["Ask"] > 10
    assert set(record["ttft_s"]) == {"p50", "p90", "p99", "max"}
    assert record["loaded_nbytes"] == 2 * 512 * record["answered"]
    assert len(stored.requests["Ask"].passage_ids) == 2


def test_a_load_is_a_table_for_people(stored: FakeServer, load: Load) -> None:
    """Percentiles of the first token and of the whole answer."""
    code, out, _ = load()
    assert code == 0
    assert "first token" in out
    assert "whole answer" in out
    assert "p99" in out


def test_failures_are_counted_by_kind_and_are_a_failure(stored: FakeServer, load: Load) -> None:
    """Nothing is tried again: a retry would hide what it is to measure."""
    stored.faults["Ask"] = [TierUnavailableError("away")] * 3
    code, out, _ = load("--json")
    record = json.loads(out)
    assert code == 1
    assert record["errors"] == {"TierUnavailableError": 3}
    assert record["answered"] == record["requests"] - 3


def test_without_passages_there_is_nothing_to_ask_about(server: FakeServer, load: Load) -> None:
    """It says what to do first."""
    code, _, err = load()
    assert code == 3
    assert "larder ingest" in err


def test_tenants_of_a_file_ask_with_their_own_tokens(
    stored: FakeServer, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not with that of the environment."""
    monkeypatch.setenv("LARDER_TOKEN", "a token that is not accepted")
    file = tmp_path / "tokens"
    file.touch(mode=0o600)
    file.write_text(f"first {TOKEN}\n")
    code, out, _ = load("--json", "--tokens", os.fspath(file))
    assert code == 0
    assert json.loads(out)["answered"] > 10


@pytest.mark.parametrize("wrong", [("--rate", "0"), ("--duration", "nan"), ("--rate", "x"), ("--max-tokens", "0"), ("--in-flight", "0")])
def test_a_load_that_can_not_be_is_wrong_usage(load: Load, wrong: tuple[str, str]) -> None:
    """Before anything is asked."""
    with pytest.raises(SystemExit) as stop:
        load(*wrong)
    assert stop.value.code == 2
