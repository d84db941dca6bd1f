from __future__ import annotations

import pytest

from kvworker.reference.notes import KINDS, Corpus, Split, generate, split_of
from kvworker.reference.words import ALIASES, FILLERS, GOODS, MACHINES, PLACES, split_words, vocabulary

GOLDEN = (
    "Ironmoor equals Goldgate. Ashford exports candles. Ashford supplies Ironford.",
    "It mines barley. It hosts Churn. Roller makes clay.",
)


def many(split: Split, n: int) -> list[Corpus]:
    return [generate(seed, 4, 3, 8, split) for seed in range(n)]


def test_the_same_seed_writes_the_same_corpus() -> None:
    assert generate(3, 4, 2, 8, "test", 2) == generate(3, 4, 2, 8, "test", 2)


def test_another_seed_writes_another_corpus() -> None:
    assert generate(3, 4, 2, 8, "test") != generate(4, 4, 2, 8, "test")


def test_a_known_seed_writes_known_words() -> None:
    """The generator draws the same words on every machine and release; documents and training depend on it."""
    corpus = generate(7, 1, 2, 3, "test")
    assert corpus.documents[0].passages == GOLDEN


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_corpus_holds_facts_of_its_own_split_only(split: Split) -> None:
    facts = [fact for corpus in many(split, 20) for fact in corpus.facts]
    assert {split_of(subject, value) for subject, _, value in facts} == {split}


def test_no_stated_name_and_value_of_the_test_split_is_ever_stated_in_training() -> None:
    """Read from the text itself, so that facts under a second name are covered too."""
    stated: dict[str, set[tuple[str, str]]] = {"train": set(), "test": set()}
    for split in ("train", "test"):
        for corpus in many(split, 40):
            sentences = [s.split() for d in corpus.documents for p in d.passages for s in p.split(".") if s]
            stated[split] |= {(words[0], words[2]) for words in sentences if words[0] != "It"}
    assert not stated["train"] & stated["test"]


def test_question_and_answer_pairs_of_the_splits_share_no_subject_and_value() -> None:
    pairs = {split: {(s, v) for c in many(split, 40) for s, _, v in c.facts} for split in ("train", "test")}
    assert not pairs["train"] & pairs["test"]


def test_a_quarter_of_the_pairs_is_for_the_test() -> None:
    share = sum(split_of(place, good) == "test" for place in PLACES for good in GOODS) / (len(PLACES) * len(GOODS))
    assert share == pytest.approx(0.25, abs=0.025)  # 8,192 coins: five standard deviations are 0.024


def test_every_kind_of_question_appears() -> None:
    assert {question.kind for question in generate(1, 4, 2, 8, "test").questions} == set(KINDS)


def test_a_question_has_one_answer() -> None:
    for corpus in many("test", 20):
        answers: dict[str, set[str]] = {}
        for question in corpus.questions:
            answers.setdefault(question.text, set()).add(question.answer)
        assert all(len(found) == 1 for found in answers.values())


def test_the_answer_stands_in_a_passage_that_the_question_needs() -> None:
    for corpus in many("test", 10):
        for question in corpus.questions:
            texts = [corpus.documents[d].passages[p] for d, p in question.passages]
            assert any(question.answer in split_words(text) for text in texts), question


def test_a_carried_fact_is_about_the_last_subject_of_the_passage_before() -> None:
    for corpus in many("test", 10):
        for question in (q for q in corpus.questions if q.kind == "carried"):
            (document, before), (_, passage) = question.passages
            assert passage == before + 1
            last = corpus.documents[document].passages[before].split(".")[-2].split()
            assert question.text.split()[2] == last[0]


def test_an_alias_question_never_names_the_alias() -> None:
    for corpus in many("test", 10):
        for question in (q for q in corpus.questions if q.kind == "alias"):
            assert not set(split_words(question.text)) & set(ALIASES)


def test_fillers_come_after_what_is_said_of_it_and_before_the_last_fact() -> None:
    corpus = generate(5, 4, 3, 6, "test", fillers_per_passage=3)
    for passage in (passage for document in corpus.documents for passage in document.passages):
        sentences = [f"{sentence.strip()}." for sentence in passage.split(".") if sentence]
        assert sum(sentence in FILLERS for sentence in sentences) == 3
        assert sentences[-1] not in FILLERS


def test_documents_use_words_of_the_vocabulary_only() -> None:
    known = set(vocabulary())
    corpus = generate(6, 6, 3, 8, "train", fillers_per_passage=2)
    texts = [p for d in corpus.documents for p in d.passages] + [q.text for q in corpus.questions] + [q.answer for q in corpus.questions]
    assert {word for text in texts for word in split_words(text)} <= known


def test_no_word_of_the_world_has_two_roles() -> None:
    names = [*PLACES, *MACHINES, *ALIASES, *GOODS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("counts", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_a_count_below_one_is_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1 is needed"):
        generate(1, *counts, "test")


def test_more_facts_than_the_world_can_state_are_refused() -> None:
    with pytest.raises(ValueError, match="1200 facts asked for, 1000 at most"):
        generate(1, 50, 3, 8, "test")


@pytest.mark.parametrize("facts", [1, 2, 3])
def test_small_passages_hold_as_many_sentences_as_asked(facts: int) -> None:
    corpus = generate(2, 2, 3, facts, "test")
    assert {passage.count(".") for document in corpus.documents for passage in document.passages} == {facts}
