from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kvworker.reference.notes import KINDS, split_of

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def entries() -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((EXAMPLES / "questions.json").read_text("utf-8"))["questions"]
    return loaded


def passages(document: str) -> list[str]:
    return (EXAMPLES / "documents" / document).read_text("utf-8").strip().split("\n\n")


def test_committed_files_are_what_the_script_writes(make_demo: ModuleType) -> None:
    for name, text in make_demo.render(make_demo.make_corpus()).items():
        assert (EXAMPLES / name).read_text("utf-8") == text, f"{name}: run examples/reference/make_demo.py examples"


def test_there_are_at_least_forty_documents_and_no_others(make_demo: ModuleType) -> None:
    written = {Path(name).name for name in make_demo.render(make_demo.make_corpus()) if name.startswith("documents/")}
    found = {path.name for path in (EXAMPLES / "documents").iterdir()}
    assert found == written
    assert len(found) >= 40


def test_every_fact_is_of_the_test_split(make_demo: ModuleType) -> None:
    assert {split_of(subject, value) for subject, _, value in make_demo.make_corpus().facts} == {"test"}


def test_there_are_at_least_twelve_questions_of_every_kind(entries: list[dict[str, Any]]) -> None:
    counts = Counter(entry["kind"] for entry in entries)
    assert set(counts) == set(KINDS)
    assert counts.total() >= 12


def test_every_context_names_passages_that_exist_once_each(entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        named = [(item["document"], item["passage"]) for item in entry["context"]]
        assert len(set(named)) == len(named)
        assert all(1 <= passage <= len(passages(document)) for document, passage in named)


def test_no_context_is_in_the_order_of_the_corpus(entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        named = [(item["document"], item["passage"]) for item in entry["context"]]
        assert named != sorted(named)


def test_the_expected_answer_stands_in_the_context(entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        text = " ".join(passages(item["document"])[item["passage"] - 1] for item in entry["context"])
        assert f" {entry['answer']}." in text


def test_contexts_reach_from_eight_passages_to_two_thousand_tokens(entries: list[dict[str, Any]]) -> None:
    counts = {len(entry["context"]) for entry in entries}
    assert {8, 9, 18, 36} <= counts
