"""Contexts from the reference model's notes, of the test split: what is in the prompt, and where reading in a document could hurt.

Documents have two passages, so that half of a context's passages can refer to the one before them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from kvworker.quality.context import Ask, Context, whole
from kvworker.reference.notes import KINDS, Corpus, Question, generate, split_of
from kvworker.reference.words import GOODS, PLACE_GOODS_VERBS, PLACES

PER_DOCUMENT = 2
FACTS = 8
_UNRELATED_DOCUMENTS = 4
_LONG_DOCUMENT = 48  # passages: about 1,600 tokens of the reference tokenizer


def in_prompt(seed: int, n_passages: int, per_kind: int) -> Context:
    """Return documents that all stand in the prompt, and as many questions of each kind."""
    corpus = generate(seed, max(1, n_passages // PER_DOCUMENT), min(n_passages, PER_DOCUMENT), FACTS, "test")
    return whole(_texts(corpus), _asks(corpus.questions, per_kind))


def retrieved_only(seed: int, n_passages: int, per_kind: int) -> Context:
    """Return the same documents with only the last passage of each in the prompt, and what those say about "It"."""
    corpus = generate(seed, max(1, n_passages // PER_DOCUMENT), min(n_passages, PER_DOCUMENT), FACTS, "test")
    prompt = tuple((d, PER_DOCUMENT - 1) for d in range(len(corpus.documents)))
    asks = [q for q in corpus.questions if q.kind == "carried" and q.passages[-1] in prompt]
    return Context(_texts(corpus), prompt, _asks(asks, per_kind))


def unrelated_before(seed: int, n_passages: int, per_kind: int) -> Context:
    """Return one document in which other notes, which are not in the prompt, precede the prompt's passages."""
    return _end_of_one_document(seed, PER_DOCUMENT * _UNRELATED_DOCUMENTS, n_passages, per_kind)


def long_document(seed: int, n_passages: int, per_kind: int) -> Context:
    """Return the last passages of a document far longer than the prompt."""
    return _end_of_one_document(seed, _LONG_DOCUMENT, n_passages, per_kind)


def contradicted_before(seed: int, n_passages: int, per_kind: int) -> Context:
    """Return documents whose first passage states another value for facts of the last; only the last passages are in the prompt."""
    corpus, rng = generate(seed, max(1, n_passages // PER_DOCUMENT), PER_DOCUMENT, FACTS, "test"), random.Random(seed)
    documents = [list(passages) for passages in _texts(corpus)]
    asks: list[Ask] = []
    for document, (first, last) in enumerate(documents):
        for subject, verb, value in _goods_facts(last)[:per_kind]:
            documents[document][0] = first = f"{subject} {verb} {_other(rng, subject, value)}. {first}"
            asks.append(Ask(f"What does {subject} {PLACE_GOODS_VERBS[verb]}?", value, "direct"))
    return Context(tuple(map(tuple, documents)), tuple((d, 1) for d in range(len(documents))), tuple(asks[: per_kind * len(KINDS)]))


def stale_edition(seed: int, n_passages: int, per_kind: int) -> Context:
    """Return prompts whose first passages are newer than what the last ones were read behind: "It" is somebody else by now.

    Ingesting a new edition gives later passages new keys, so only a caller who mixes editions meets this.
    """
    corpus, rng = generate(seed, max(1, n_passages // PER_DOCUMENT), PER_DOCUMENT, FACTS, "test"), random.Random(seed)
    editions: list[tuple[str, ...]] = []
    asks: list[Ask] = []
    for document, passages in enumerate(_texts(corpus)):
        *before, last = passages[0].split(". ")
        old = last.split()[0]
        said = [q for q in corpus.questions if q.kind == "carried" and q.passages[-1] == (document, 1)]
        new = rng.choice([name for name in PLACES if name not in " ".join(map(" ".join, _texts(corpus)))])
        editions.append((". ".join([*before, last.replace(old, new, 1)]),))
        asks += [Ask(q.text.replace(old, new), q.answer, q.kind) for q in said]
    n = len(editions)
    prompt = tuple(spot for d in range(n) for spot in ((n + d, 0), (d, 1)))
    return Context((*_texts(corpus), *editions), prompt, tuple(asks[: per_kind * len(KINDS)]))


def unseen(seed: int, n_passages: int, per_kind: int) -> Context:
    """Return `retrieved_only` with questions whose answers stand only in passages that are not in the prompt: right answers are leaks."""
    corpus = generate(seed, max(1, n_passages // PER_DOCUMENT), PER_DOCUMENT, FACTS, "test")
    prompt = tuple((d, PER_DOCUMENT - 1) for d in range(len(corpus.documents)))
    asks = [q for q in corpus.questions if q.kind == "direct" and not set(q.passages) & set(prompt)]
    return Context(_texts(corpus), prompt, _asks(asks, per_kind))


def _end_of_one_document(seed: int, n_before: int, n_passages: int, per_kind: int) -> Context:
    """Return the last passages of one document of many notes, with questions that these passages answer."""
    n_before -= n_before % PER_DOCUMENT
    corpus = generate(seed, (n_before + n_passages) // PER_DOCUMENT, PER_DOCUMENT, FACTS, "test")
    passages = tuple(text for passages in _texts(corpus) for text in passages)
    asks = [q for q in corpus.questions if all(document * PER_DOCUMENT >= n_before for document, _ in q.passages)]
    return Context((passages,), tuple((0, i) for i in range(n_before, len(passages))), _asks(asks, per_kind))


def _texts(corpus: Corpus) -> tuple[tuple[str, ...], ...]:
    return tuple(document.passages for document in corpus.documents)


def _asks(questions: Sequence[Question], per_kind: int) -> tuple[Ask, ...]:
    """Return the first few questions of each kind."""
    chosen = [q for kind in KINDS for q in [q for q in questions if q.kind == kind][:per_kind]]
    return tuple(Ask(q.text, q.answer, q.kind) for q in chosen)


def _goods_facts(passage: str) -> list[tuple[str, str, str]]:
    """Return what a passage says under their own names about places and goods."""
    sentences = (sentence.split() for sentence in passage.rstrip(".").split(". "))
    return [(s, v, o) for s, v, o in sentences if s in PLACES and v in PLACE_GOODS_VERBS]


def _other(rng: random.Random, subject: str, value: str) -> str:
    """Return another value of the test split."""
    return rng.choice([good for good in GOODS if good != value and split_of(subject, good) == "test"])
