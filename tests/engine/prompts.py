"""What the engine tests share: a loaded tiny model beside its reference, stored passages, and prompts over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kvworker.chunk import KVChunk, PassageKV
from kvworker.engine.engine import LoadFailed, Segment
from kvworker.engine.engine_hf import HFEngine, load_engine
from tests.engine.tiny_models import BOS, WINDOW, save_tiny_model

BORDERLINE_LENGTHS = (1, WINDOW - 1, WINDOW, WINDOW + 1, 30)
QUESTION_TOKENS = 7


@dataclass(frozen=True)
class Tiny:
    """A tiny model as an engine, and the same weights as a plain library model."""

    name: str
    directory: Path
    engine: HFEngine
    reference: Any

    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Return the reference's logits (V,) behind the last token of a full prefill."""
        with torch.inference_mode():
            logits: torch.Tensor = self.reference(torch.tensor([token_ids])).logits[0, -1]
        return logits

    def greedy(self, token_ids: Sequence[int], n_tokens: int) -> list[int]:
        """Return what the reference generates, end of sequence left out."""
        ids = torch.tensor([token_ids])
        with torch.inference_mode():
            out = self.reference.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n_tokens, do_sample=False)
        return [token for token in out[0, len(token_ids) :].tolist() if token not in self.engine.eos_ids]


def load_tiny(name: str, directory: Path) -> Tiny:
    """Save a tiny model to `directory` and load it both ways, on CPU in float32."""
    save_tiny_model(name, directory)
    reference: Any = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
    return Tiny(name, directory, load_engine(directory, device="cpu"), reference)


def open_engine(tiny: Tiny) -> tuple[HFEngine, Any]:
    """Load the weights once more and return an engine together with the model inside it, for hooks."""
    model: Any = AutoModelForCausalLM.from_pretrained(tiny.directory, attn_implementation="larder_rows", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(tiny.directory, local_files_only=True)
    return HFEngine(model, tokenizer, tiny.engine.identity, tiny.engine.eos_ids), model


@dataclass
class Kept:
    """A source that has its chunks at hand and notes which groups were asked for."""

    passage: PassageKV
    asked: list[int] = field(default_factory=list)

    def group(self, index: int) -> KVChunk:
        """Return a chunk."""
        self.asked.append(index)
        return self.passage[index]


class Lost:
    """A source whose chunk is gone."""

    def group(self, index: int) -> KVChunk:
        """Raise LoadFailed."""
        raise LoadFailed(f"layer group {index} is gone")


def random_passages(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Return passages of these lengths, own BOS first."""
    generator = torch.Generator().manual_seed(seed)
    return [[BOS, *torch.randint(0, 256, (n - 1,), generator=generator).tolist()] for n in lengths]


def random_question(seed: int = 1) -> list[int]:
    """Return the tokens of a question."""
    return torch.randint(0, 256, (QUESTION_TOKENS,), generator=torch.Generator().manual_seed(seed)).tolist()


def stored(passages: Sequence[Sequence[int]], kv: Sequence[PassageKV], question: Sequence[int]) -> list[Segment]:
    """Return the prompt of stored passages and a question that is computed."""
    return [*(Segment(tuple(p), Kept(chunks)) for p, chunks in zip(passages, kv, strict=True)), Segment(tuple(question))]


def ids_of(segments: Sequence[Segment]) -> list[int]:
    """Return all tokens of a prompt."""
    return [token for segment in segments for token in segment.token_ids]
