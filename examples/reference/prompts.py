"""Token sequences as serving frames them: every passage behind its own <bos>, then the questions."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvworker.reference.notes import Corpus, Kind, Question
from kvworker.reference.tokenizer import BOS, EOS, PAD, build_vocabulary
from kvworker.reference.words import split_words

Spot = tuple[int, int]
_IDS = {token.strip(): index for token, index in build_vocabulary().items()}
PAD_ID, BOS_ID, EOS_ID = _IDS[PAD], _IDS[BOS], _IDS[EOS]
VOCABULARY_SIZE = len(_IDS)
IGNORED = -100


def encode(text: str) -> list[int]:
    """Return the token ids of text that uses the words of the notes only; the tokenizer gives the same ones."""
    return [_IDS[word] for word in split_words(text)]


def passage_ids(corpus: Corpus, spot: Spot) -> list[int]:
    return [BOS_ID, *encode(corpus.documents[spot[0]].passages[spot[1]])]


def whole_documents(corpus: Corpus, rng: random.Random) -> list[Spot]:
    """Return every passage: documents in any order, the passages of each in theirs."""
    return _shuffled([[(d, p) for p in range(len(doc.passages))] for d, doc in enumerate(corpus.documents)], rng)


def scattered_runs(corpus: Corpus, rng: random.Random) -> list[Spot]:
    """Return every passage: each document cut into runs of neighbours, the runs of all documents in any order."""
    runs: list[list[Spot]] = []
    for d, document in enumerate(corpus.documents):
        for p in range(len(document.passages)):
            if p and rng.random() < 0.5:
                runs[-1].append((d, p))
            else:
                runs.append([(d, p)])
    return _shuffled(runs, rng)


def _shuffled(runs: list[list[Spot]], rng: random.Random) -> list[Spot]:
    rng.shuffle(runs)
    return [spot for run in runs for spot in run]


def answerable(questions: Sequence[Question], order: Sequence[Spot]) -> list[Question]:
    """Return the questions that this order answers: all their passages are there, and a carried one right behind the one before it."""
    at = {spot: index for index, spot in enumerate(order)}
    return [
        question
        for question in questions
        if all(spot in at for spot in question.passages)
        and (question.kind != "carried" or at[question.passages[1]] == at[question.passages[0]] + 1)
    ]


def balanced(questions: Sequence[Question], per_kind: Mapping[Kind, int]) -> list[Question]:
    """Return the first few questions of each kind, in the order given."""
    left = dict(per_kind)
    chosen = []
    for question in questions:
        if left[question.kind]:
            left[question.kind] -= 1
            chosen.append(question)
    return chosen


@dataclass(frozen=True)
class Example:
    """A context with questions behind it: token ids, the id to predict at each (IGNORED where none), and where the runs begin."""

    token_ids: list[int]
    targets: list[int]
    borders: list[int]


def example(corpus: Corpus, order: Sequence[Spot], questions: Sequence[Question]) -> Example:
    """Return the prompt over these passages with these questions and their answers; every answer and the <eos> behind it is predicted."""
    ids: list[int] = []
    borders: list[int] = []
    for index, spot in enumerate(order):
        if index == 0 or order[index - 1] != (spot[0], spot[1] - 1):
            borders.append(len(ids))
        ids += passage_ids(corpus, spot)
    targets = [IGNORED] * len(ids)
    for question in questions:
        asked = encode(question.text)
        answer = encode(question.answer)[0]
        borders.append(len(ids))
        ids += [*asked, answer, EOS_ID]
        targets += [IGNORED] * (len(asked) - 1) + [answer, EOS_ID, IGNORED]
    return Example(ids, targets, borders)
