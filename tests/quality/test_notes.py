"""The contexts of the reuse benchmark say what their names promise."""

from __future__ import annotations

import pytest

from kvworker.quality import notes
from kvworker.quality.context import Context

SEEDS = range(5)


def test_all_documents_stand_in_the_prompt() -> None:
    """Eight passages, in the order of their documents."""
    context = notes.in_prompt(1, 8, 2)
    assert [context.documents[d][p] for d, p in context.prompt] == [text for passages in context.documents for text in passages]


def test_there_are_equally_many_questions_of_each_kind() -> None:
    """So that an average over questions favours no kind."""
    kinds = [ask.kind for ask in notes.in_prompt(1, 8, 2).asks]
    assert {kind: kinds.count(kind) for kind in kinds} == {"direct": 2, "carried": 2, "alias": 2, "two_hop": 2}


@pytest.mark.parametrize("seed", SEEDS)
def test_retrieved_only_leaves_out_who_it_speaks_of(seed: int) -> None:
    """What is asked about stands in no passage of the prompt as the subject of the fact that answers."""
    context = notes.retrieved_only(seed, 8, 8)
    for ask in context.asks:
        subject, value = ask.text.split()[2], ask.answer
        assert not any(f"{subject} " in s and s.rstrip(".").endswith(f" {value}") for text in context.texts for s in text.split(". "))


@pytest.mark.parametrize("make", [notes.unrelated_before, notes.long_document])
def test_what_precedes_in_the_document_is_not_in_the_prompt(make: object) -> None:
    """The prompt is the end of one long document."""
    context: Context = make(1, 8, 2)  # type: ignore[operator]
    assert len(context.documents[0]) - len(context.prompt) in (8, 48)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_contradiction_precedes_every_fact_that_is_asked_for(seed: int) -> None:
    """With the same subject and verb, and another value."""
    context = notes.contradicted_before(seed, 8, 2)
    sentences = [{s.rstrip(".") for s in text.split(". ")} for text in (" ".join(d[0] for d in context.documents), " ".join(context.texts))]
    for ask in context.asks:
        told = [[s for s in said if s.startswith(ask.text.split()[2] + " ")] for said in sentences]
        assert all(told)
        assert not any(s.endswith(" " + ask.answer) and s in sentences[0] for s in told[1])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_new_edition_names_somebody_else_at_its_end(seed: int) -> None:
    """Only the last sentence differs from the edition that the next passage was read behind."""
    context = notes.stale_edition(seed, 8, 2)
    n = len(context.documents) // 2
    for old, new in zip(context.documents[:n], context.documents[n:], strict=True):
        assert [a == b for a, b in zip(old[0].split(". "), new[0].split(". "), strict=True)].count(False) == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_what_only_unseen_passages_say_is_in_no_passage_of_the_prompt(seed: int) -> None:
    """A right answer could only come from what a stored passage remembers."""
    context = notes.unseen(seed, 8, 4)
    for ask in context.asks:
        subject = ask.text.split()[2]
        assert not any(
            s.startswith(f"{subject} ") and s.rstrip(".").endswith(f" {ask.answer}") for t in context.texts for s in t.split(". ")
        )
