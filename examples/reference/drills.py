"""Drills on second names: short contexts in which only the right second name leads to the answer.

"The value that any second name has with this verb" answers most alias questions of the notes. In a drill every second name has a fact
with each of the same few verbs, so this shortcut is right no more often than guessing among them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from prompts import Example, example

from kvworker.reference.notes import Corpus, Document, Kind, Question, split_of, values_of
from kvworker.reference.words import ALIASES, PLACE_GOODS_VERBS, PLACE_MACHINE_VERBS, PLACE_PLACE_VERBS, PLACES, VERBS

_VERBS = tuple({**PLACE_GOODS_VERBS, **PLACE_MACHINE_VERBS, **PLACE_PLACE_VERBS})
_MOST_NAMES = (2, 3, 4, 6)  # one of these is drawn first, then 2 names up to that many
_MOST_SHARED_VERBS = 3
_MOST_BYSTANDERS = 6
_MOST_QUESTIONS = 10
_OWN_FACT_CHANCE = 0.5  # that a place with a second name has a fact under its first one too
_ASK_NAME_CHANCE, _ASK_OWN_CHANCE = 0.1, 0.2
_CUT_CHANCES = (0.0, 0.1, 0.3)  # one of these is drawn; with it a new passage begins at a sentence


@dataclass(frozen=True)
class _Fact:
    subject: str
    verb: str
    value: str

    def sentence(self) -> str:
        return f"{self.subject} {self.verb} {self.value}."


@dataclass(frozen=True)
class _Asked:
    """A question about the value of the last of these facts, under a subject of its own."""

    subject: str
    kind: Kind
    facts: tuple[_Fact, ...]

    def question(self, at: dict[_Fact, int]) -> Question:
        verb, answer = self.facts[-1].verb, self.facts[-1].value
        passages = tuple((document, 0) for document in sorted({at[fact] for fact in self.facts}))
        return Question(f"What does {self.subject} {VERBS[verb]}?", answer, self.kind, passages)


def drill(rng: random.Random) -> Corpus:
    """Return facts of the training split about 2 to 6 second names that share 1 to 3 verbs, as documents of one passage, and questions."""
    bindings = _bind(rng, rng.randint(2, rng.choice(_MOST_NAMES)))
    shared = rng.sample(_VERBS, rng.randint(1, _MOST_SHARED_VERBS))
    facts, asked = list(bindings), []
    for binding in bindings:
        more_facts, more_asked = _about(rng, binding, shared)
        facts += more_facts
        asked += more_asked
    others = [place for place in PLACES if all(place != binding.subject for binding in bindings)]
    facts += [_state(rng, place, rng.choice(_VERBS)) for place in rng.sample(others, rng.randint(0, _MOST_BYSTANDERS))]
    rng.shuffle(facts)
    rng.shuffle(asked)
    passages, at = _cut(rng, facts)
    documents = tuple(Document(f"drill-{index + 1:02}", (text,)) for index, text in enumerate(passages))
    questions = tuple(a.question(at) for a in asked[:_MOST_QUESTIONS])
    return Corpus(documents, questions, tuple((fact.subject, fact.verb, fact.value) for fact in facts))


def drill_example(rng: random.Random) -> Example:
    """Return a drill as the model reads it, with every question in the loss."""
    corpus = drill(rng)
    return example(corpus, [(document, 0) for document in range(len(corpus.documents))], corpus.questions)


def _bind(rng: random.Random, n_names: int) -> list[_Fact]:
    """Return facts that give as many places a second name each."""
    places: list[str] = []
    names = rng.sample(ALIASES, n_names)
    for name in names:
        places.append(rng.choice([p for p in PLACES if p not in places and split_of(p, name) == "train"]))
    return [_Fact(place, "equals", name) for place, name in zip(places, names, strict=True)]


def _state(rng: random.Random, subject: str, verb: str, first_name: str | None = None) -> _Fact:
    """Return a fact whose value its subject, and the place it stands for, may meet in training."""
    names = (subject, first_name) if first_name else (subject,)
    return _Fact(subject, verb, rng.choice(values_of(names, verb, "train")))


def _about(rng: random.Random, binding: _Fact, shared: list[str]) -> tuple[list[_Fact], list[_Asked]]:
    """Return a fact with each shared verb under the second name, perhaps one under the first, and questions about them."""
    place, name = binding.subject, binding.value
    facts = [_state(rng, name, verb, place) for verb in shared]
    asked = [_Asked(place, "alias", (binding, fact)) for fact in facts]
    asked += [_Asked(name, "direct", (fact,)) for fact in facts if rng.random() < _ASK_NAME_CHANCE]
    if rng.random() < _OWN_FACT_CHANCE:
        own = _state(rng, place, rng.choice([verb for verb in _VERBS if verb not in shared]))
        facts.append(own)
        if rng.random() < _ASK_OWN_CHANCE:
            asked.append(_Asked(place, "direct", (own,)))
    return facts, asked


def _cut(rng: random.Random, facts: list[_Fact]) -> tuple[list[str], dict[_Fact, int]]:
    """Return the facts as passages cut at random, and the passage that states each."""
    chance = rng.choice(_CUT_CHANCES)
    passages: list[list[str]] = []
    at: dict[_Fact, int] = {}
    for fact in facts:
        if not passages or rng.random() < chance:
            passages.append([])
        passages[-1].append(fact.sentence())
        at[fact] = len(passages) - 1
    return [" ".join(sentences) for sentences in passages], at
