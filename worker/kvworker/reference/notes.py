"""Seeded documents of short factual notes, and questions that they answer.

A passage is a run of sentences such as "Aldermoor exports salt." that stands between two blank lines of a document. Four kinds of
question differ in what a reader must have read together:

    direct    the passage states subject and value            "Aldermoor exports salt."
    carried   the passage says "It", which is the subject     "... Aldermoor trusts Corwick."  /  "It exports salt."
              of the last sentence of the passage before
    alias     one passage binds a second name, another        "Aldermoor equals Bluemill."  /  "Bluemill exports salt."
              states the fact under it
    two_hop   the value in one passage is the subject of      "Aldermoor trusts Corwick."  /  "Corwick exports salt."
              a fact in another
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from kvworker.reference.words import (
    ALIASES,
    FILLERS,
    GOODS,
    MACHINE_GOODS_VERBS,
    MACHINES,
    PLACE_GOODS_VERBS,
    PLACE_MACHINE_VERBS,
    PLACE_PLACE_VERBS,
    PLACES,
    VERBS,
)

Split = Literal["train", "test"]
Kind = Literal["direct", "carried", "alias", "two_hop"]
KINDS: tuple[Kind, ...] = ("direct", "carried", "alias", "two_hop")

_PLACE_VERBS = tuple({**PLACE_GOODS_VERBS, **PLACE_PLACE_VERBS, **PLACE_MACHINE_VERBS})
_MACHINE_VERBS = tuple(MACHINE_GOODS_VERBS)
_MACHINE_SET = frozenset(MACHINES)
_ALIAS_SET = frozenset(ALIASES)
_GOODS_VERBS = frozenset({**PLACE_GOODS_VERBS, **MACHINE_GOODS_VERBS})
_SUBJECTS = PLACES + MACHINES
_MAX_CARRIED = 3
_MAX_FACTS = 1000
# Chance that a fact whose value is a place or machine names one that has notes of its own, so that two_hop questions exist.
_LINK_CHANCE = 0.7


@dataclass(frozen=True)
class Question:
    """A question, its one-word answer, and the passages that a reader needs, as (document, passage) indices in reading order."""

    text: str
    answer: str
    kind: Kind
    passages: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Document:
    """A titled list of passages; the title is a name for the file, and no part of the text."""

    title: str
    passages: tuple[str, ...]


@dataclass(frozen=True)
class Corpus:
    """Documents, every question that they answer, and the facts behind them as (subject, verb, value)."""

    documents: tuple[Document, ...]
    questions: tuple[Question, ...]
    facts: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class _Fact:
    """A fact, the name under which its sentence states it ("It", an alias, or the subject), and where."""

    subject: str
    verb: str
    value: str
    stated: str
    where: tuple[int, int]

    def sentence(self) -> str:
        return f"{self.stated} {self.verb} {self.value}."


@cache
def split_of(subject: str, value: str) -> Split:
    """Return the only split in which this subject and this value may meet, from a hash of both: a quarter of the pairs is for the test.

    With half of them, a model learns which pairs never occur and rules candidates out by it, which is wrong for every fact of the test.
    """
    first, second = (value, subject) if value in _ALIAS_SET else (subject, value)
    return "test" if hashlib.sha256(f"{first}\0{second}".encode()).digest()[0] & 3 == 3 else "train"


@cache
def values_of(names: tuple[str, ...], verb: str, split: Split) -> tuple[str, ...]:
    """Return the values of a verb that every one of these names may meet in this split."""
    pool = PLACES if verb in PLACE_PLACE_VERBS else MACHINES if verb in PLACE_MACHINE_VERBS else GOODS
    return tuple(value for value in pool if value not in names and all(split_of(name, value) == split for name in names))


class _Writer:
    """Writes the facts of one corpus: a subject and a verb meet at most once in it, so every question has one answer."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        self.rng, self.split = rng, split
        self.facts: list[_Fact] = []
        self._unused: dict[str, list[str]] = {}
        self._named: list[str] = []  # subjects met so far, which a later fact may have as its value

    def pick(self, items: Sequence[str]) -> str:
        return items[int(self.rng.random() * len(items))]

    def state(self, subject: str, stated: str, where: tuple[int, int]) -> _Fact | None:
        """Write a new fact about a subject, or return None when the subject has met every verb."""
        verbs = self._unused.get(subject)
        if verbs is None:
            verbs = list(_MACHINE_VERBS if subject in _MACHINE_SET else _PLACE_VERBS)
            self.rng.shuffle(verbs)
            self._unused[subject] = verbs
            self._named.append(subject)
        while verbs:
            verb = verbs.pop()
            if value := self._value(subject, stated, verb):
                self.facts.append(_Fact(subject, verb, value, stated, where))
                return self.facts[-1]
        return None

    def state_any(self, subject: str, where: tuple[int, int]) -> _Fact:
        """Write a new fact about a subject, or about another one when this one has met every verb."""
        while (fact := self.state(subject, subject, where)) is None:
            subject = self.pick(_SUBJECTS)
        return fact

    def _value(self, subject: str, stated: str, verb: str) -> str | None:
        """Return a value that both names may meet in this split, or None."""
        values = values_of((subject,) if stated in (subject, "It") else (subject, stated), verb, self.split)
        if verb not in _GOODS_VERBS and self.rng.random() < _LINK_CHANCE:
            allowed = frozenset(values)
            values = tuple(name for name in self._named if name in allowed) or values
        return self.pick(values) if values else None

    def passage(
        self, where: tuple[int, int], n_facts: int, carried: str | None, bound: Sequence[_Fact], used: Sequence[_Fact]
    ) -> list[_Fact]:
        """Write one passage: what it says of "It" first, then everything else in any order, then one sentence with its own subject.

        `carried` is the last subject of the passage before; `bound` are the second names explained here, `used` those that a fact here
        is stated under. Sentences beyond `n_facts` are left out, the last one never.
        """
        last, other = self.pick(_SUBJECTS), self.pick(_SUBJECTS)
        wishes = 1 + int(self.rng.random() * _MAX_CARRIED) if carried else 0
        said = [fact for _ in range(min(wishes, n_facts - 1)) if (fact := self.state(carried or "", "It", where))]
        room = n_facts - 1 - len(said)
        middle = [*bound[:room]]
        self.facts.extend(middle)
        middle += [fact for name in used[: room - len(middle)] if (fact := self.state(name.subject, name.value, where))]
        n_other = int(self.rng.random() * (room - len(middle) + 1))
        middle += [self.state_any(other, where) for _ in range(n_other)]
        middle += [self.state_any(last, where) for _ in range(room - len(middle))]
        self.rng.shuffle(middle)
        return [*said, *middle, self.state_any(last, where)]


def generate(
    seed: int,
    n_documents: int,
    passages_per_document: int,
    facts_per_passage: int,
    split: Split,
    fillers_per_passage: int = 0,
    aliases_per_document: int = 1,
) -> Corpus:
    """Write documents of equally many passages and facts, and every question that they answer, shuffled.

    The same arguments give the same corpus on every machine. Facts whose subject and value belong to the other split never appear.
    Raises ValueError for a count below one or for more facts than the names and verbs can state.
    """
    _check_counts(n_documents, passages_per_document, facts_per_passage)
    rng = random.Random(seed)
    writer = _Writer(rng, split)
    spots = [(d, p) for d in range(n_documents) for p in range(passages_per_document)]
    binds, uses = _place_aliases(writer, spots, n_documents * aliases_per_document)
    texts: list[list[str]] = [[] for _ in range(n_documents)]
    last: str | None = None
    for where in spots:
        facts = writer.passage(where, facts_per_passage, last if where[1] else None, binds.get(where, ()), uses.get(where, ()))
        last = facts[-1].subject
        sentences = [fact.sentence() for fact in facts]
        n_carried = sum(fact.stated == "It" for fact in facts)
        for _ in range(fillers_per_passage):
            sentences.insert(rng.randint(n_carried, len(sentences) - 1), rng.choice(FILLERS))
        texts[where[0]].append(" ".join(sentences))
    questions = _questions(writer.facts)
    rng.shuffle(questions)
    documents = tuple(Document(f"notes-{d + 1:02}", tuple(passages)) for d, passages in enumerate(texts))
    return Corpus(documents, tuple(questions), tuple((fact.subject, fact.verb, fact.value) for fact in writer.facts))


def _check_counts(n_documents: int, passages_per_document: int, facts_per_passage: int) -> None:
    counts = {"n_documents": n_documents, "passages_per_document": passages_per_document, "facts_per_passage": facts_per_passage}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"notes: {name} is {count}; at least 1 is needed")
    n_facts = n_documents * passages_per_document * facts_per_passage
    if n_facts > _MAX_FACTS:
        raise ValueError(f"notes: {n_facts} facts asked for, {_MAX_FACTS} at most; lower one of the counts")


Placed = dict[tuple[int, int], list[_Fact]]


def _place_aliases(writer: _Writer, spots: Sequence[tuple[int, int]], n_aliases: int) -> tuple[Placed, Placed]:
    """Choose second names, the passage that explains each, and another passage that uses it."""
    binds: Placed = {}
    uses: Placed = {}
    bound: set[str] = set()
    for alias in writer.rng.sample(ALIASES, min(n_aliases, len(ALIASES))):
        bound_at, used_at = writer.rng.sample(spots, 2) if len(spots) > 1 else (spots[0], spots[0])
        place = writer.pick(tuple(name for name in PLACES if name not in bound and split_of(name, alias) == writer.split))
        bound.add(place)
        fact = _Fact(place, "equals", alias, place, bound_at)
        binds.setdefault(bound_at, []).append(fact)
        uses.setdefault(used_at, []).extend((fact, fact))  # two facts under each second name
    return binds, uses


def _questions(facts: Sequence[_Fact]) -> list[Question]:
    """Return every question that these facts answer."""
    bindings = {fact.value: fact for fact in facts if fact.verb == "equals"}
    by_subject: dict[str, list[_Fact]] = {}
    for fact in facts:
        if fact.stated == fact.subject:
            by_subject.setdefault(fact.subject, []).append(fact)
    questions: list[Question] = []
    for fact in facts:
        asked = f"{fact.subject} {VERBS[fact.verb]}?"
        if fact.stated == "It":
            document, passage = fact.where
            questions.append(Question(f"What does {asked}", fact.value, "carried", ((document, passage - 1), fact.where)))
        elif fact.stated != fact.subject:
            questions.append(Question(f"What does {fact.stated} {VERBS[fact.verb]}?", fact.value, "direct", (fact.where,)))
            if fact.stated in bindings:
                questions.append(Question(f"What does {asked}", fact.value, "alias", _places(bindings[fact.stated], fact)))
        else:
            questions.append(Question(f"What does {asked}", fact.value, "direct", (fact.where,)))
            questions.extend(_two_hops(fact, by_subject.get(fact.value, ())))
    return questions


def _two_hops(first: _Fact, seconds: Sequence[_Fact]) -> list[Question]:
    """Return a question through the value of a fact to each good that the value has to do with."""
    named = f"What does the one {first.subject} {first.verb}"
    goods = (second for second in seconds if second.verb in _GOODS_VERBS)
    return [Question(f"{named} {VERBS[second.verb]}?", second.value, "two_hop", _places(first, second)) for second in goods]


def _places(*facts: _Fact) -> tuple[tuple[int, int], ...]:
    return tuple(sorted({fact.where for fact in facts}))
