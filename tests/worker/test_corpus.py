"""Reading a folder of examples: what is wrong with it is said, whatever it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvstore.core.errors import InvalidInputError
from kvworker.demo.corpus import Example, read_examples, shipped_examples

QUESTION = {"question": "What?", "answer": "salt", "kind": "direct", "context": [{"document": "a.txt", "passage": 2}]}


def write(folder: Path, questions: object = None, text: bytes = b"one\n\ntwo\n") -> Path:
    """Write a folder of examples."""
    (folder / "documents").mkdir()
    (folder / "documents" / "a.txt").write_bytes(text)
    body = {"questions": [QUESTION] if questions is None else questions}
    (folder / "questions.json").write_text(json.dumps(body))
    return folder


def test_passages_are_paragraphs_and_contexts_count_from_one(tmp_path: Path) -> None:
    """Names count from zero."""
    examples = read_examples(write(tmp_path, text=b"\n\none\nline\n\n\n\ntwo\n"))
    assert examples.documents == {"a.txt": ["one\nline", "two"]}
    assert examples.n_passages == 2
    assert examples.questions == (Example("What?", "salt", "direct", (("a.txt", 1),)),)
    assert examples.questions[0].names == ("a.txt#1",)


def test_a_folder_that_holds_no_examples_is_refused(tmp_path: Path) -> None:
    """With what is looked for."""
    with pytest.raises(InvalidInputError, match=r"documents/\*\.txt and questions\.json"):
        read_examples(tmp_path)


@pytest.mark.parametrize(
    "questions",
    [
        [],
        {},
        3,
        ["What?"],
        [[]],
        [{}],
        [{**QUESTION, "context": "a.txt"}],
        [{**QUESTION, "context": ["a.txt#1"]}],
        [{**QUESTION, "context": [{"document": "a.txt"}]}],
        [{**QUESTION, "context": [{"document": "a.txt", "passage": "second"}]}],
        [{**QUESTION, "context": [{"document": "a.txt", "passage": 0}]}],
        [{**QUESTION, "context": [{"document": "a.txt", "passage": 3}]}],
        [{**QUESTION, "context": [{"document": "b.txt", "passage": 1}]}],
        [{k: v for k, v in QUESTION.items() if k != "answer"}],
    ],
)
def test_malformed_questions_are_refused(tmp_path: Path, questions: object) -> None:
    """Before anything is ingested."""
    with pytest.raises(InvalidInputError):
        read_examples(write(tmp_path, questions))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"asked": []}'])
def test_a_questions_file_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    """Not JSON, or another one."""
    (write(tmp_path) / "questions.json").write_text(text)
    with pytest.raises(InvalidInputError):
        read_examples(tmp_path)


def test_a_document_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """Rather than read wrongly."""
    with pytest.raises(InvalidInputError):
        read_examples(write(tmp_path, text=b"caf\xe9"))


def test_the_shipped_examples_are_as_many_as_the_demo_promises() -> None:
    """At least 40 documents, and 12 questions that each name several passages."""
    examples = read_examples(shipped_examples())
    assert len(examples.documents) >= 40
    assert len(examples.questions) >= 12
    assert all(len(q.context) > 1 for q in examples.questions)
