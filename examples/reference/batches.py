"""The curriculum: what the model reads at each step, as padded tensors."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from drills import drill_example
from prompts import BOS_ID, IGNORED, PAD_ID, VOCABULARY_SIZE, Example, answerable, balanced, example, scattered_runs, whole_documents

from kvworker.reference.notes import Kind, generate

COPY_STEPS = 300
STEPS_PER_DOCUMENT = 400
MAX_DOCUMENTS = 4
BATCH = 64  # at most; fewer examples where that many would exceed the tokens
BATCH_TOKENS = 16_000
DRILLS = 48  # in a batch of them
# Positions jump between runs up to here, so that a 2,048-token context and its questions meet no position for the first time.
STRETCHED_POSITIONS = 3000
_FIRST_WORD, _LAST_WORD = 3, VOCABULARY_SIZE - 256  # between the special tokens and the bytes
_WIDTH_STEP = 32


@dataclass(frozen=True)
class Shape:
    """How many documents, passages each, facts and fact-free sentences per passage."""

    n_documents: int
    passages: int
    facts: int
    fillers: int

    def n_examples(self) -> int:
        """Return how many such contexts, with their questions, go into a batch."""
        n_tokens = self.n_documents * self.passages * (4 * self.facts + 11 * self.fillers + 1) + 150
        return max(4, min(BATCH, BATCH_TOKENS // n_tokens))


@dataclass(frozen=True)
class Batch:
    """Token ids, the ids to predict (IGNORED where none), and positions, each (B, T)."""

    ids: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum: its first step, the rate it rises to, shares of copies and long contexts, and questions of each kind.

    `n_layers` is the model's depth from here on, `max_aliases` the most second names per document. `drill_share` is the share of batches
    that are drills; the other shares are taken of the rest. `guidance_weight` is what guidance counts for in the loss.
    """

    first_step: int
    peak_rate: float
    n_rising: int
    copy_share: float
    long_share: float
    questions: Mapping[Kind, int]
    shape: Callable[[random.Random, int], Shape]
    n_layers: int = 4
    max_aliases: int = 1
    drill_share: float = 0.0
    guidance_weight: float = 0.0


def draw(rng: random.Random, step: int, stage: Stage) -> Batch:
    """Return the batch of one step: copies only at first, then what the stage asks for."""
    if step < COPY_STEPS:
        return pad([copy_example(rng) for _ in range(BATCH)], rng, 0)
    if stage.drill_share and rng.random() < stage.drill_share:
        return pad([drill_example(rng) for _ in range(DRILLS)], rng, STRETCHED_POSITIONS)
    if stage.long_share and rng.random() < stage.long_share:
        return note_batch(rng, long_shape(rng), stage)
    if rng.random() < stage.copy_share:
        return pad([copy_example(rng) for _ in range(BATCH)], rng, STRETCHED_POSITIONS)
    return note_batch(rng, stage.shape(rng, step), stage)


def copy_example(rng: random.Random) -> Example:
    """Return random words and the same words again; predicting the second half grows heads that look up what followed a word."""
    words = [rng.randrange(_FIRST_WORD, _LAST_WORD) for _ in range(rng.randint(12, 32))]
    return Example([BOS_ID, *words, *words], [IGNORED] * (len(words) + 1) + words[1:] + [IGNORED], [0])


def growing_shape(rng: random.Random, step: int) -> Shape:
    """Return a context of at most as many documents as this step of the curriculum allows."""
    level = min(MAX_DOCUMENTS, 1 + (step - COPY_STEPS) // STEPS_PER_DOCUMENT)
    return Shape(rng.randint(1, level), rng.randint(1, 2 if level < 3 else 3), rng.randint(1, 8), rng.choice((0, 0, 0, 2)))


def crowded_shape(rng: random.Random, _step: int) -> Shape:
    """Return a context in which 36 to 80 facts compete, and now and then a small one."""
    fillers = rng.choice((0, 0, 0, 2))
    if rng.random() < 0.2:
        return Shape(rng.randint(1, 3), rng.randint(1, 3), rng.randint(2, 6), fillers)
    return Shape(*rng.choice(((4, 2), (4, 2), (2, 4), (3, 3), (5, 2))), rng.randint(6, 8), fillers)


def long_shape(rng: random.Random) -> Shape:
    """Return a context of 400 to 2,100 tokens."""
    facts, fillers = rng.choice(((8, 0), (6, 2), (8, 2)))
    return Shape(rng.randint(4, 12), 3, facts, fillers)


def note_batch(rng: random.Random, shape: Shape, stage: Stage) -> Batch:
    """Return contexts of the training split, whole documents in most and scattered runs in the others, with questions of every kind."""
    examples = []
    for _ in range(shape.n_examples()):
        seed, n_aliases = rng.getrandbits(48), rng.randint(1, stage.max_aliases)
        corpus = generate(seed, shape.n_documents, shape.passages, shape.facts, "train", shape.fillers, n_aliases)
        order = (whole_documents if rng.random() < 0.6 else scattered_runs)(corpus, rng)
        examples.append(example(corpus, order, balanced(answerable(corpus.questions, order), stage.questions)))
    return pad(examples, rng, STRETCHED_POSITIONS)


def pad(examples: list[Example], rng: random.Random, n_positions: int) -> Batch:
    """Return the examples side by side, padded at their ends; every second one has its positions spread over `n_positions`."""
    width = -(-max(len(e.token_ids) for e in examples) // _WIDTH_STEP) * _WIDTH_STEP
    ids = torch.full((len(examples), width), PAD_ID)
    targets = torch.full((len(examples), width), IGNORED)
    positions = torch.arange(width).repeat(len(examples), 1)
    for row, e in enumerate(examples):
        n = len(e.token_ids)
        ids[row, :n] = torch.tensor(e.token_ids)
        targets[row, :n] = torch.tensor(e.targets)
        if n_positions > width and rng.random() < 0.5:
            positions[row] += jumps(e.borders, width, int(rng.random() ** 2 * (n_positions - width)), rng)
    return Batch(ids, targets, positions)


def jumps(borders: list[int], width: int, n_spare: int, rng: random.Random) -> torch.Tensor:
    """Return how far each token (T,) moves when `n_spare` positions are skipped at random among the borders between runs."""
    moved = torch.zeros(width, dtype=torch.long)
    cuts = sorted(int(rng.random() * (n_spare + 1)) for _ in borders)
    for border, before, cut in zip(borders, [0, *cuts], cuts, strict=False):
        moved[border] += cut - before
    return moved.cumsum(0)


STAGES = (
    Stage(0, 3e-3, 200, 0.12, 0.0, {"direct": 6, "carried": 6, "alias": 6, "two_hop": 6}, growing_shape),
    Stage(2250, 1.5e-3, 50, 0.12, 0.2, {"direct": 4, "carried": 4, "alias": 8, "two_hop": 8}, growing_shape),
    Stage(
        3250, 1.5e-3, 50, 0.04, 0.1, {"direct": 8, "carried": 8, "alias": 10, "two_hop": 2}, crowded_shape,
        n_layers=6, max_aliases=3, drill_share=0.7, guidance_weight=0.3,
    ),
    Stage(
        3650, 1.2e-3, 50, 0.04, 0.1, {"direct": 8, "carried": 8, "alias": 10, "two_hop": 2}, crowded_shape,
        n_layers=6, max_aliases=3, drill_share=0.2, guidance_weight=0.3,
    ),
)  # fmt: skip
N_STEPS = 4550
