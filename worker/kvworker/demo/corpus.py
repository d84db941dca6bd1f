"""The example documents and questions: passages from text files, and what is asked over them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvstore.core.errors import InvalidInputError


@dataclass(frozen=True)
class Example:
    """A question, the expected answer, its kind, and its context: (source, index) of each passage in the order of the prompt."""

    question: str
    answer: str
    kind: str
    context: tuple[tuple[str, int], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The context as passage names."""
        return tuple(f"{source}#{index}" for source, index in self.context)


@dataclass(frozen=True)
class Examples:
    """Documents by source name, each a list of passages, and questions over them."""

    documents: Mapping[str, list[str]]
    questions: tuple[Example, ...]

    @property
    def n_passages(self) -> int:
        """Passages of all documents."""
        return sum(len(passages) for passages in self.documents.values())


def read_examples(directory: Path) -> Examples:
    """Read `documents/*.txt` (passages are paragraphs) and `questions.json` of a directory; raises InvalidInputError."""
    files = sorted((directory / "documents").glob("*.txt"))
    if not files or not (directory / "questions.json").exists():
        raise InvalidInputError(f"{directory} has no documents/*.txt and questions.json; name a folder of examples with --examples")
    try:
        documents = {f.name: [p.strip() for p in f.read_text(encoding="utf-8").split("\n\n") if p.strip()] for f in files}
        asked = json.loads((directory / "questions.json").read_text(encoding="utf-8"))["questions"]
        questions = tuple(_example(entry) for entry in asked)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(f"{directory} is no folder of examples: {type(error).__name__}: {error}") from error
    _check_places(documents, questions)
    return Examples(documents, questions)


def shipped_examples() -> Path:
    """Return the folder of examples of a source checkout."""
    return Path(__file__).resolve().parents[3] / "examples"


def _check_places(documents: Mapping[str, list[str]], questions: Sequence[Example]) -> None:
    """Raise InvalidInputError unless there is a question, and every context names passages that exist."""
    if not questions:
        raise InvalidInputError("questions.json holds no question")
    for example in questions:
        for source, index in example.context:
            if not 0 <= index < len(documents.get(source, ())):
                raise InvalidInputError(f"question {example.question!r} names passage {index + 1} of {source}, which does not exist")


def _example(entry: Mapping[str, object]) -> Example:
    """Read one question; `passage` counts from 1 in the file."""
    context = entry["context"]
    if not isinstance(context, list):
        raise TypeError(f"the context of question {entry.get('question')!r} is not a list")
    places = tuple((str(spot["document"]), int(spot["passage"]) - 1) for spot in context)
    return Example(str(entry["question"]), str(entry["answer"]), str(entry["kind"]), places)
