"""Writes the demo: documents of notes from the test split, and questions over passages of them in an order never seen before.

    python examples/reference/make_demo.py examples

Nothing is chosen by what a model answers: the seed alone decides. A document is a text file whose paragraphs are its passages; the file's
name is not part of the text. `questions.json` names passages as {"document": file name, "passage": number from 1}.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from prompts import Spot

from kvworker.reference.notes import Corpus, Kind, Question, generate

SEED = 2026
N_DOCUMENTS, PASSAGES, FACTS, FILLERS = 40, 3, 8, 2
# What is asked, over how many passages: 8 are about 450 tokens, 9 about 512, 18 about 1,024 and 36 about 2,048.
ASKED: tuple[tuple[Kind, int], ...] = (
    ("direct", 8), ("carried", 8), ("alias", 8), ("direct", 9), ("carried", 9), ("two_hop", 8),
    ("direct", 18), ("carried", 18), ("alias", 9), ("direct", 36), ("carried", 36), ("two_hop", 9),
    ("direct", 8), ("carried", 8), ("alias", 18), ("alias", 36),
)  # fmt: skip


def make_corpus() -> Corpus:
    """Return the documents of the demo."""
    return generate(SEED, N_DOCUMENTS, PASSAGES, FACTS, "test", FILLERS)


def choose_context(corpus: Corpus, question: Question, n_passages: int, rng: random.Random) -> list[Spot]:
    """Return passages in any order: those the question needs, and others; "It" stays right behind what it speaks of."""
    others = [(d, p) for d, document in enumerate(corpus.documents) for p in range(len(document.passages))]
    others = [spot for spot in others if spot not in question.passages]
    needed = [list(question.passages)] if question.kind == "carried" else [[spot] for spot in question.passages]
    groups = needed + [[spot] for spot in rng.sample(others, n_passages - len(question.passages))]
    rng.shuffle(groups)
    return [spot for group in groups for spot in group]


def make_questions(corpus: Corpus) -> list[dict[str, object]]:
    """Return the questions with their expected answers and their contexts."""
    rng = random.Random(SEED)
    waiting = {kind: [question for question in corpus.questions if question.kind == kind] for kind, _ in ASKED}
    entries: list[dict[str, object]] = []
    for kind, n_passages in ASKED:
        question = waiting[kind].pop()
        spots = choose_context(corpus, question, n_passages, rng)
        context = [{"document": f"{corpus.documents[d].title}.txt", "passage": p + 1} for d, p in spots]
        entries.append({"question": question.text, "answer": question.answer, "kind": kind, "context": context})
    return entries


def render(corpus: Corpus) -> dict[str, str]:
    """Return the text of every file, by its path below the examples folder."""
    files = {f"documents/{document.title}.txt": "\n\n".join(document.passages) + "\n" for document in corpus.documents}
    entries = make_questions(corpus)
    lines = ",\n".join("  " + json.dumps(entry) for entry in entries)
    return {**files, "questions.json": '{"questions": [\n' + lines + "\n]}\n"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the examples folder to write into")
    folder = parser.parse_args().folder
    (folder / "documents").mkdir(parents=True, exist_ok=True)
    for name, text in render(make_corpus()).items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
