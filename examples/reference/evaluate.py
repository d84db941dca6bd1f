"""Prints what a reference model answers right, by kind of question, by way of reading, and by size of context.

    python examples/reference/evaluate.py --model worker/kvworker/reference/model

Every question is asked alone, right behind its context, over documents of the test split, which share no subject-value pair with training.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from prompts import PAD_ID, Spot, answerable, balanced, encode, passage_ids, scattered_runs, whole_documents
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from kvworker.reference.notes import KINDS, Corpus, Question, generate

Reading = Literal["full", "alone", "document"]
READINGS: dict[Reading, str] = {
    "full": "every token reads all before it",
    "alone": "each passage was read by itself, nothing is repaired",
    "document": "each passage was read behind its document's earlier ones",
}
_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Setting:
    """The contexts to ask over: how many documents of how many passages, of how many facts and fact-free sentences, in which order."""

    name: str
    n_documents: int
    passages: int
    facts: int
    fillers: int
    order: Literal["whole", "scattered"] = "whole"

    def corpus(self, seed: int) -> Corpus:
        return generate(seed, self.n_documents, self.passages, self.facts, "test", self.fillers)

    def arrange(self, corpus: Corpus, rng: random.Random) -> list[Spot]:
        return whole_documents(corpus, rng) if self.order == "whole" else scattered_runs(corpus, rng)


EIGHT_PASSAGES = Setting("8 passages", 4, 2, 8, 0)
SETTINGS = (
    EIGHT_PASSAGES,
    Setting("8 passages of 4 facts", 4, 2, 4, 0),
    Setting("8 passages, scattered", 2, 4, 8, 0, "scattered"),
    Setting("512 tokens", 3, 3, 8, 2),
    Setting("1024 tokens", 6, 3, 8, 2),
    Setting("2048 tokens", 12, 3, 8, 2),
    Setting("2048 tokens, scattered", 12, 3, 8, 2, "scattered"),
)


@torch.no_grad()
def answers(model: LlamaForCausalLM, corpus: Corpus, order: Sequence[Spot], questions: Sequence[Question], reading: Reading) -> list[int]:
    """Return the token that follows each question, asked alone behind the passages in this order."""
    parts = [passage_ids(corpus, spot) for spot in order]
    context = [token for part in parts for token in part]
    rows = [context + encode(question.text) for question in questions]
    width = max(len(row) for row in rows)
    mask = torch.ones(width, width, dtype=torch.bool).tril()
    if reading != "full":
        group = [
            index if reading == "alone" else spot[0] for index, (spot, part) in enumerate(zip(order, parts, strict=True)) for _ in part
        ]
        owner = torch.tensor(group)
        mask[: len(context), : len(context)] &= owner[:, None] == owner[None, :]
    found: list[int] = []
    step = max(1, _BATCH_TOKENS // width)
    for batch in (rows[start : start + step] for start in range(0, len(rows), step)):
        ids = torch.tensor([row + [PAD_ID] * (width - len(row)) for row in batch])
        hidden = model.model(input_ids=ids, attention_mask=mask.expand(len(batch), 1, width, width)).last_hidden_state
        ends = torch.tensor([len(row) - 1 for row in batch])
        found += model.lm_head(hidden[torch.arange(len(batch)), ends]).argmax(-1).tolist()
    return found


def accuracy(
    model: LlamaForCausalLM, setting: Setting, n_contexts: int, reading: Reading = "full", seed: int = 1, per_kind: int = 8
) -> tuple[dict[str, float], int]:
    """Return the share of right answers by kind, and the tokens of an average context; at most `per_kind` questions a context."""
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    n_tokens = 0
    rng = random.Random(seed)
    for index in range(n_contexts):
        corpus = setting.corpus(seed * 100_003 + index)
        order = setting.arrange(corpus, rng)
        n_tokens += sum(len(passage_ids(corpus, spot)) for spot in order)
        questions = balanced(answerable(corpus.questions, order), dict.fromkeys(KINDS, per_kind))
        for question, token in zip(questions, answers(model, corpus, order, questions, reading), strict=True):
            asked[question.kind] += 1
            right[question.kind] += [token] == encode(question.answer)
    return {kind: right[kind] / asked[kind] for kind in KINDS if asked[kind]}, n_tokens // n_contexts


def row(setting: Setting, n_tokens: int, reading: Reading, shares: Mapping[str, float]) -> str:
    cells = "".join(f"{shares[kind]:9.3f}" if kind in shares else f"{'-':>9}" for kind in KINDS)
    return f"{setting.name:24}{n_tokens:7}  {reading:9}{cells}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    parser.add_argument("--contexts", type=int, default=50, help="contexts per row")
    parser.add_argument("--seed", type=int, default=1, help="seed of the contexts")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, local_files_only=True).eval()
    print(*(f"{name}: {meaning}" for name, meaning in READINGS.items()), sep="\n")
    print(f"\n{'context':24}{'tokens':>7}  {'reading':9}" + "".join(f"{kind:>9}" for kind in KINDS))
    for setting in SETTINGS:
        for reading in READINGS:
            shares, n_tokens = accuracy(model, setting, arguments.contexts, reading, arguments.seed)
            print(row(setting, n_tokens, reading, shares), flush=True)


if __name__ == "__main__":
    main()
