"""Ask all questions over contexts that are stored once, in both modes of the shared-context benchmark, in every way to reuse them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from kvworker.answer.policy import find_policy
from kvworker.codec.pipeline import Pipeline
from kvworker.codec.presets import LADDER
from kvworker.codec.specs import find_codec
from kvworker.quality.calibration import LOSSLESS, codec_id
from kvworker.quality.context import Context
from kvworker.quality.fidelity import agrees, divergence, overlap
from kvworker.quality.probe import Answered, Probe, Stored
from kvworker.quality.task import DEPTHS, Task
from kvworker.quality.variants import FULL, LATE_CHUNKING, ReadAs, Variant, every_policy

Mode = Literal["multi_request", "multi_turn"]
MODES: tuple[Mode, ...] = get_args(Mode)
"""Each question by itself over the restored context, or behind the questions before it and their right answers."""


@dataclass(frozen=True)
class Way:
    """A variant, and the codec that its passages were stored with, None for one that loses nothing."""

    name: str
    variant: Variant
    codec: Pipeline | None = None


@dataclass(frozen=True)
class Point:
    """One answer: who gave it to what, how right it was, and how close to full prefill's."""

    way: str
    mode: Mode
    task: str
    depth: float
    turn: int
    score: float
    is_same: bool
    kl: float
    retained: float
    rows: float


def ways() -> list[Way]:
    """Return full prefill, a prefix cache, the same through every codec that loses, every policy, and late chunking."""
    nothing = find_policy("none")
    prefix = Variant("prefix", 0.0, "prefix", nothing)
    lossy = [(name, codec) for name, codec in ((preset.name, find_codec(preset.name)) for preset in LADDER) if codec_id(codec) != LOSSLESS]
    return [
        Way(FULL.name, FULL),
        Way("prefix", prefix),
        *(Way(f"prefix+{name}", prefix, codec) for name, codec in lossy),
        *(Way(policy.name, Variant(policy.name, 0.0, "alone", policy)) for policy in every_policy()),
        Way(LATE_CHUNKING, Variant(LATE_CHUNKING, 0.0, "document", nothing)),
    ]


def measure_task(probe: Probe, task: Task, seed: int, asked: list[Way]) -> Iterator[Point]:
    """Yield a point per question, mode and way over one context; the first way is what the others are compared with."""
    draw = random.Random(f"{task.name} {seed}")
    context = task.make(draw)
    turns = draw.sample(range(len(context.asks)), len(context.asks))
    read: dict[ReadAs, Stored] = {reading: probe.read(context, reading) for reading in ("alone", "document", "prefix")}
    stored = [_stored(probe, way, read) for way in asked]
    for mode in MODES:
        for turn, number in enumerate(turns):
            text = _text(context, turns[:turn] if mode == "multi_turn" else [], number)
            answers = [probe.ask(context, text, s, w.variant.policy, task.answer_tokens) for w, s in zip(asked, stored, strict=True)]
            for way, answered in zip(asked, answers, strict=True):
                said = probe.engine.decode(answered.token_ids)
                score = task.score(said, context.asks[number].answer)
                yield _point(way.name, mode, task.name, number, turn, score, answers[0], answered)


def _stored(probe: Probe, way: Way, read: dict[ReadAs, Stored]) -> Stored | None:
    """Return the context as one way finds it; full prefill finds nothing."""
    if way.variant.policy is None:
        return None
    plain = read[way.variant.reading]
    return probe.recode(plain, way.codec) if way.codec else plain


def _text(context: Context, before: list[int], number: int) -> str:
    """Return a question behind earlier ones with their right answers."""
    history = "".join(f"{context.asks[i].text} {context.asks[i].answer}. " for i in before)
    return history + context.asks[number].text


def _point(way: str, mode: Mode, task: str, number: int, turn: int, score: float, full: Answered, answered: Answered) -> Point:
    """Return one answer's point."""
    a, b = full.logits, answered.logits
    return Point(way, mode, task, DEPTHS[number], turn, score, agrees(a, b), divergence(a, b), overlap(a, b), answered.rows)
