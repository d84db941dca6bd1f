"""`larder demo` and `larder bench` on a small folder of examples with a tiny model; what the demo stored it finds again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvclient.cli import exits
from kvclient.cli.main import main
from kvstore.core.discovery import known_names
from kvworker.serve.commands import BENCHMARKS

N_DOCUMENTS, N_QUESTIONS = 4, 3


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """Write documents of two passages each, and questions over passages in other orders."""
    folder = tmp_path / "examples"
    (folder / "documents").mkdir(parents=True)
    for n in range(N_DOCUMENTS):
        (folder / "documents" / f"notes-{n}.txt").write_text(f"Town {n} exports salt.\n\nIt trusts town {n + 1}.\n")
    contexts = [[(1, 2), (0, 1)], [(3, 1), (2, 2), (0, 2)], [(2, 1)]]
    questions = [
        {
            "question": f"What does town {n} export?",
            "answer": "salt",
            "kind": "direct",
            "context": [{"document": f"notes-{d}.txt", "passage": p} for d, p in context],
        }
        for n, context in enumerate(contexts)
    ]
    (folder / "questions.json").write_text(json.dumps({"questions": questions}))
    return folder


def test_the_demo_runs_twice_and_computes_passages_once(
    model: Path, examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second run says so."""
    command = ["demo", "--model", str(model), "--examples", str(examples), "--data-dir", str(tmp_path / "data"), "--memory", "16MiB"]
    n_passages = 2 * N_DOCUMENTS
    assert main(command) == exits.OK
    first = capsys.readouterr().out
    assert f"{N_DOCUMENTS} documents, {n_passages} passages: {n_passages} computed now, 0 found in the store" in first
    assert f"{N_QUESTIONS} questions: " in first
    assert main(command) == exits.OK
    assert f"0 computed now, {n_passages} found in the store" in capsys.readouterr().out


def test_a_program_gets_one_object_per_question(model: Path, examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With what the demo is for: both answers, both times, and where the passages came from."""
    command = ["demo", "--json", "--model", str(model), "--examples", str(examples), "--data-dir", str(tmp_path / "data")]
    assert main([*command, "--policy", "all", "--planner", "always_load", "--memory", "16MiB", "--disk", "0"]) == exits.OK
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == N_QUESTIONS
    assert all(row["agrees"] and row["answer"] == row["full_prefill_answer"] for row in rows)  # `all` is exact
    assert [row["passages"] for row in rows] == [2, 3, 1]
    assert all(row["ttft_s"] > 0 and row["ttft_computed_s"] > 0 for row in rows)


def test_a_folder_without_examples_is_wrong_usage(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said before a model is loaded."""
    assert main(["demo", "--model", str(model), "--examples", str(tmp_path)]) == exits.USAGE
    assert "questions.json" in capsys.readouterr().err


def test_the_context_benchmark_prints_rows_of_the_contract(
    model: Path, examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The columns of the record, in JSON; and in a CSV file where one is named."""
    command = ["bench", "context", "--quick", "--json", "--model", str(model), "--examples", str(examples)]
    assert main([*command, "--csv", str(tmp_path / "rows.csv")]) == exits.OK
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["metric"] for row in rows} == {"accuracy", "agreement", "ttft", "ttft_ratio"}
    columns = "bench,variant,metric,unit,x_name,x,p20,p50,p80,device,dtype,date,commit"
    assert list(rows[0]) == columns.split(",")
    assert all(row["p20"] <= row["p50"] <= row["p80"] for row in rows)
    assert {row["p50"] for row in rows if (row["variant"], row["metric"]) == ("all", "agreement")} == {1.0}
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    assert (lines[0], len(lines)) == (columns, len(rows) + 1)


def test_an_unknown_benchmark_is_refused_with_the_known_ones(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is wrong usage."""
    assert main(["bench", "magic", "--model", str(model)]) == exits.USAGE
    assert "no benchmark 'magic'; known: cluster, codecs, context" in capsys.readouterr().err


def test_the_help_names_every_benchmark() -> None:
    """It is written by hand, since a benchmark imports torch."""
    assert list(BENCHMARKS) == known_names("kvworker.bench")
