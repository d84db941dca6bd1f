"""Stored passages in a prompt give what the plain library computes, for every family, with windows shorter than the context and without."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from transformers import DynamicCache

from kvworker.answer.policy import parse_policy
from kvworker.engine.engine import Segment, always_computed
from kvworker.engine.rope import RotaryTable, rotate
from kvworker.engine.sampling import Sampling
from tests.engine.prompts import BORDERLINE_LENGTHS, Tiny, ids_of, random_passages, random_question, stored

TOLERANCE = 1e-4  # fp32 logits of magnitude 5 over a few hundred summands; observed at most 2e-5
TEN = Sampling(max_new_tokens=10)


def alone(tiny: Tiny, lengths: tuple[int, ...] = BORDERLINE_LENGTHS) -> list[Segment]:
    """Return a prompt over passages that were each read alone."""
    passages = random_passages(lengths)
    return stored(passages, [tiny.engine.export([p])[0] for p in passages], random_question())


def as_prefix(tiny: Tiny, lengths: tuple[int, ...] = BORDERLINE_LENGTHS) -> list[Segment]:
    """Return a prompt whose passages were read in this very order, so that every stored row is exact."""
    passages = random_passages(lengths)
    return stored(passages, tiny.engine.export(passages), random_question())


def assert_full_prefill(tiny: Tiny, segments: list[Segment], rows: list[int]) -> None:
    """Fail unless logits and ten greedy tokens are those of a full prefill."""
    ids = ids_of(segments)
    generation = tiny.engine.prefill(segments, rows, TEN)
    torch.testing.assert_close(generation.first_logits, tiny.logits(ids), rtol=0, atol=TOLERANCE)
    assert list(generation) == tiny.greedy(ids, 10)


def test_recomputing_all_rows_equals_a_full_prefill(tiny: Tiny) -> None:
    """The exactness test that every selective method shares."""
    segments = alone(tiny)
    assert_full_prefill(tiny, segments, parse_policy("all").select(segments))


def test_first_k_of_at_least_a_passage_equals_a_full_prefill(tiny: Tiny) -> None:
    """The first passage is taken from the store: read alone or at the start of a prompt is the same."""
    segments = alone(tiny)
    rows = parse_policy(f"first_k:k={max(BORDERLINE_LENGTHS)}").select(segments)
    assert rows[0] == BORDERLINE_LENGTHS[0]
    assert_full_prefill(tiny, segments, rows)


@pytest.mark.parametrize("length", BORDERLINE_LENGTHS)
def test_one_leading_passage_without_repair_equals_prefix_caching(tiny: Tiny, length: int) -> None:
    """Lengths around the window and a single token are where an off-by-one hides."""
    segments = alone(tiny, (length,))
    assert_full_prefill(tiny, segments, parse_policy("none").select(segments))


def test_an_exact_prefix_of_several_chunks_equals_a_full_prefill(tiny: Tiny) -> None:
    """Consecutive chunks of one export are prefix chunks."""
    segments = as_prefix(tiny)
    assert_full_prefill(tiny, segments, parse_policy("none").select(segments))


@pytest.mark.parametrize("seed", range(3))
def test_scattered_rows_over_exact_sources_equal_a_full_prefill(tiny: Tiny, seed: int) -> None:
    """Any rows may be computed again: a wrong mask, position or overwrite shows here."""
    segments = as_prefix(tiny)
    rows = sorted({*always_computed(segments), *random.Random(seed).sample(range(sum(BORDERLINE_LENGTHS)), 25)})
    assert_full_prefill(tiny, segments, rows)


def test_only_the_last_row_over_exact_sources_equals_a_full_prefill(tiny: Tiny) -> None:
    """The smallest set of rows: everything is stored, the last row's logits answer."""
    passages = random_passages(BORDERLINE_LENGTHS)
    segments = stored(passages, tiny.engine.export(passages), random_question())[:-1]
    assert_full_prefill(tiny, segments, always_computed(segments))


def test_a_computed_segment_between_stored_ones_equals_a_full_prefill(tiny: Tiny) -> None:
    """Stored segments need not be neighbours."""
    segments = as_prefix(tiny)
    segments[2] = Segment(segments[2].token_ids)
    assert_full_prefill(tiny, segments, parse_policy("none").select(segments))


def test_exported_values_and_keys_are_those_of_a_plain_prefill(tiny: Tiny) -> None:
    """Keys come before RoPE: rotated to where they were read they are the plain cache's, which keeps all rows when it has no config."""
    passages = random_passages(BORDERLINE_LENGTHS)
    ids = torch.tensor([[token for passage in passages for token in passage]])
    with torch.inference_mode():
        cache = tiny.reference.model(ids, past_key_values=DynamicCache(), use_cache=True).past_key_values
    exported = tiny.engine.export(passages)
    for g, group in enumerate(tiny.engine.identity.layout.groups):
        k, v = (torch.cat([getattr(passage[g], part) for passage in exported], 2) for part in "kv")
        assert group.rope is not None
        rotate(k, *RotaryTable(group.rope, k.dtype, k.device).first(k.shape[2]), out=(rotated := torch.empty_like(k)))
        for i, layer in enumerate(group.layers):
            assert_close_to_scale(rotated[i], cache.layers[layer].keys[0])
            assert_close_to_scale(v[i], cache.layers[layer].values[0])


def assert_close_to_scale(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Fail beyond 1e-5 of the largest magnitude: float32 angles at position 67 alone are off by 67 * 2**-24 = 4e-6 of it."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_passages_read_alone_equal_a_prefill_in_which_they_do_not_see_each_other(tiny: Tiny) -> None:
    """Moving a passage is nothing but rotating its keys: the library, given a block mask, computes the same at the new positions."""
    segments = alone(tiny)
    starts = [0]
    for segment in segments:
        starts.append(starts[-1] + len(segment.token_ids))
    rows = torch.arange(starts[-1])
    own_start = torch.tensor([start for start, stop in pairwise(starts) for _ in range(start, stop)])
    own_start[starts[-2] :] = 0  # the question sees all
    visible = (rows[None] <= rows[:, None]) & (rows[None] >= own_start[:, None])
    ids = torch.tensor([ids_of(segments)])
    masks = {window: visible & (rows[None] > rows[:, None] - window) if window else visible for window in windows_of(tiny)}
    with torch.inference_mode():
        expected = tiny.reference(ids, attention_mask=mask_argument(tiny, masks)).logits[0, -1]
    generation = tiny.engine.prefill(segments, parse_policy("none").select(segments))
    torch.testing.assert_close(generation.first_logits, expected, rtol=0, atol=TOLERANCE)


def windows_of(tiny: Tiny) -> set[int]:
    """Return the distinct windows of a model's layers."""
    return {group.window for group in tiny.engine.identity.layout.groups}


def mask_argument(tiny: Tiny, masks: dict[int, torch.Tensor]) -> object:
    """Return boolean masks (T, T) by window as the library takes them: one per layer type, or one for all layers."""
    four = {window: mask[None, None] for window, mask in masks.items()}
    if not hasattr(tiny.reference.config, "layer_types"):
        return next(iter(four.values()))
    windowed = [mask for window, mask in four.items() if window]
    return {"full_attention": four.get(0), "sliding_attention": windowed[0] if windowed else None}
