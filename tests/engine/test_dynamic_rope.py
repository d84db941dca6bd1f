"""Dynamic NTK scaling: what was read before RoPE is right at any length of the prompt, and what cannot be right is computed or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from kvstore.core.errors import InvalidInputError
from kvworker.answer.policy import parse_policy
from kvworker.engine.engine import Segment
from kvworker.engine.engine_hf import HFEngine, load_engine
from kvworker.engine.sampling import Sampling
from tests.engine.prompts import Tiny, ids_of, random_passages, random_question, stored
from tests.engine.tiny_models import save_tiny_model

TOLERANCE = 1e-4  # as in the splice tests
TRAINED, FACTOR = 48, 4.0
ROPE = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": FACTOR}
SHORT, LONG = (20, 13), (20, 30, 25)  # with the question's 7 tokens: 40 and 82


def saved(folder: Path, **changes: Any) -> Path:
    """Write a tiny model whose trained context is shorter than the prompts here."""
    return save_tiny_model("llama", folder, max_position_embeddings=TRAINED, rope_parameters=ROPE, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the model's directory."""
    return saved(tmp_path_factory.mktemp("dynamic"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> HFEngine:
    """Return the engine."""
    return load_engine(folder, device="cpu")


def library(folder: Path, engine: HFEngine) -> Tiny:
    """Return a fresh library model: it remembers the longest sequence it has seen, and turns shorter ones alike."""
    return Tiny("dynamic", folder, engine, AutoModelForCausalLM.from_pretrained(folder, local_files_only=True))


def alone(engine: HFEngine, lengths: tuple[int, ...]) -> list[Segment]:
    """Return a prompt over passages that were each read alone, the first of which claims to be exact."""
    passages = random_passages(lengths)
    first, *others = stored(passages, [engine.export([p])[0] for p in passages], random_question())
    return [Segment(first.token_ids, first.source, is_exact=True), *others]


@pytest.mark.parametrize("spec", ["all", "exact", "first_k:k=30"])
@pytest.mark.parametrize("lengths", [SHORT, LONG])
def test_repair_of_every_row_equals_a_full_prefill(folder: Path, engine: HFEngine, lengths: tuple[int, ...], spec: str) -> None:
    """Also where the first passage, exact at any other length, is not: it was read with other angles."""
    segments = alone(engine, lengths)
    logits = parse_policy(spec).finish(engine.begin(segments)).first_logits
    torch.testing.assert_close(logits, library(folder, engine).logits(ids_of(segments)), rtol=0, atol=TOLERANCE)


def test_an_exact_prefix_equals_a_full_prefill_below_the_trained_context(folder: Path, engine: HFEngine) -> None:
    """Nothing depends on the length there."""
    passages = random_passages(SHORT)
    segments = stored(passages, engine.export(passages), random_question())
    logits = parse_policy("none").finish(engine.begin(segments)).first_logits
    torch.testing.assert_close(logits, library(folder, engine).logits(ids_of(segments)), rtol=0, atol=TOLERANCE)


def test_stored_keys_turn_with_the_prompt_they_are_in(tmp_path: Path) -> None:
    """In the first layer K before RoPE and V depend on their own token alone, so with one layer a splice without any repair is exact."""
    folder = saved(tmp_path, num_hidden_layers=1)
    engine = load_engine(folder, device="cpu")
    segments = [Segment(s.token_ids, s.source) for s in alone(engine, LONG)]
    spliced = parse_policy("none").finish(engine.begin(segments))
    assert spliced.rows_computed == 20 + 7  # the first passage, whose place promises exactness, and the question
    expected = library(folder, engine).logits(ids_of(segments))
    torch.testing.assert_close(spliced.first_logits, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("lengths", [SHORT, LONG])
def test_generation_follows_the_library_across_the_trained_context(folder: Path, engine: HFEngine, lengths: tuple[int, ...]) -> None:
    """The library turns each new token by the length it makes, and leaves older keys as they are: 40 + 30 tokens pass 48 on the way."""
    segments = alone(engine, lengths)
    generation = parse_policy("all").finish(engine.begin(segments, Sampling(max_new_tokens=30)))
    assert list(generation) == library(folder, engine).greedy(ids_of(segments), 30)


def test_the_context_is_the_trained_one_times_the_factor(engine: HFEngine) -> None:
    """Reading for the store ends where angles begin to depend on what follows."""
    assert (engine.max_context_tokens, engine.max_reading_tokens) == (192, 48)


def test_reading_more_than_the_trained_context_for_the_store_is_refused(engine: HFEngine) -> None:
    """Its first rows would depend on what comes after them."""
    with pytest.raises(InvalidInputError, match="75 tokens cannot be read at once for the store: beyond the 48 of the trained context"):
        engine.export(random_passages(LONG))
