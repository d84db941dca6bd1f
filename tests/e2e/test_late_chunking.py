"""Late chunking with the reference model and a real server: the example does what the README says, and documents can be taken back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvclient.cli import exits
from tests.e2e.processes import Process, run, start, stop

EXAMPLE = Path(__file__).parents[2] / "examples" / "late_chunking.py"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """Serve the reference model."""
    process = start(tmp_path_factory.mktemp("reference"), "up", "--address", "127.0.0.1:0", "--memory", "64MiB", "--disk", "0")
    yield process
    stop(process)


@pytest.fixture(scope="module")
def printed(reference: Process) -> list[str]:
    """Run the example once."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], env=reference.client_env(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def records(reference: Process, *arguments: str, code: int = exits.OK) -> list[dict[str, Any]]:
    """Run a verb with --json and return what it printed."""
    done = run(reference, *arguments, "--json")
    assert done.returncode == code, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_passages_read_in_their_documents_answer_what_their_text_cannot(printed: list[str]) -> None:
    """The three statements say "it", and nothing in the prompt says what it is."""
    assert printed[2] == "read in its document, then loaded: marble, wool, flour: 3 of 3 right"
    assert all("3 of 3" not in line for line in printed[:2])


@pytest.mark.parametrize("read_as", ["document", "alone"])
def test_a_question_from_the_command_line_chooses_its_reading(reference: Process, printed: list[str], read_as: str) -> None:
    """And is told which it got."""
    options = ("--policy", "none", "--planner", "always_load", "--read-as", read_as)
    *_, report = records(reference, "ask", "What does Thornham store?", "--context", "harbour.txt#1,mine.txt#1", *options)
    assert [row["read_as"] for row in report["passages"]] == [read_as] * 2


def test_a_forgotten_document_leaves_no_chunk_and_no_name(reference: Process) -> None:
    """Unlike an invalidated one, whose passages can still be asked about."""
    run(reference, "ingest", str(EXAMPLE), "--passages", "lines", "--read-as", "both")
    name = EXAMPLE.as_posix()
    records(reference, "ask", "What?", "--context", f"{name}#1", "--max-tokens", "1")
    (forgotten,) = records(reference, "forget", name)
    assert forgotten["n_chunks"] > 0
    assert name not in {row.get("source") for row in records(reference, "ls")}
    records(reference, "ask", "What?", "--context", f"{name}#1", "--max-tokens", "1", code=exits.NOT_FOUND)
    records(reference, "forget", name, code=exits.NOT_FOUND)
