"""A prompt in steps: computed from its start, abandoned, narrowed on its way up the layers, and looked at before it is answered."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import count

import pytest
import torch

from kvstore.core.errors import InvalidInputError
from kvworker.answer.policy import parse_policy
from kvworker.chunk import KVChunk
from kvworker.engine.engine import Change, LoadFailed, Segment, always_computed
from kvworker.engine.rope import rotate
from kvworker.engine.sampling import Sampling
from tests.engine.prompts import Kept, Lost, Tiny, ids_of, random_passages, random_question, stored

LENGTHS = (9, 20, 14)
TOLERANCE = 1e-4  # fp32 logits of magnitude 5 over a few hundred summands; observed at most 2e-5
N_TOKENS = sum(LENGTHS) + 7


def alone(tiny: Tiny) -> list[Segment]:
    """Return passages read alone and a question."""
    passages = random_passages(LENGTHS)
    return stored(passages, [tiny.engine.export([p])[0] for p in passages], random_question())


def exact(tiny: Tiny) -> list[Segment]:
    """Return passages that were read as they stand in the prompt, and a question."""
    passages = random_passages(LENGTHS)
    return stored(passages, tiny.engine.export(passages), random_question())


def none(segments: Sequence[Segment]) -> list[int]:
    """Return the rows that must be computed."""
    return parse_policy("none").select(segments)


def asked(segment: Segment) -> list[int]:
    """Return the groups that a segment's source was asked for."""
    assert isinstance(segment.source, Kept)
    return segment.source.asked


@dataclass
class Drop:
    """A narrowing that drops what a function says, with a look or without."""

    at: Collection[int]
    choose: Callable[[Sequence[int]], Sequence[int]]
    looks: bool = False
    seen: list[Change] = field(default_factory=list)

    @property
    def layers(self) -> Collection[int]:
        """The layers before which it is asked."""
        return self.at

    def keep(self, layer: int, rows: Sequence[int], look: Callable[[], Change]) -> Sequence[int]:
        """Return what the function says."""
        if self.looks:
            self.seen.append(look())
        return self.choose(rows)


@pytest.mark.parametrize("borders", [(5, 9, 17, 40), (1, 43), (29,)])
def test_computing_in_steps_equals_a_full_prefill(tiny: Tiny, borders: tuple[int, ...]) -> None:
    """Racing computes from the start of a prompt while the rest is on its way; here nothing arrives."""
    segments = alone(tiny)
    run = tiny.engine.begin(segments)
    for start, stop in zip((0, *borders), borders, strict=False):
        assert run.compute(range(start, stop))
    generation = run.finish(range(borders[-1], N_TOKENS))
    torch.testing.assert_close(generation.first_logits, tiny.logits(ids_of(segments)), rtol=0, atol=TOLERANCE)
    assert generation.work.rows == tuple(range(N_TOKENS))


@pytest.mark.parametrize("n_computed", [1, 8, 9, 10, 28, 29, 42])
def test_a_computed_start_and_a_loaded_rest_equal_a_full_prefill(tiny: Tiny, n_computed: int) -> None:
    """The two ends may meet inside a passage: its computed rows stay, the others are placed."""
    segments = exact(tiny)
    run = tiny.engine.begin(segments)
    run.compute(range(n_computed))
    generation = run.finish(none(segments))
    torch.testing.assert_close(generation.first_logits, tiny.logits(ids_of(segments)), rtol=0, atol=TOLERANCE)


def test_rows_computed_in_an_earlier_step_are_never_placed_over(llama: Tiny) -> None:
    """A source of another text would change the answer if any of its rows replaced a computed one."""
    segments = exact(llama)
    other = llama.engine.export([random_passages([20], seed=9)[0]])[0]
    segments[1] = Segment(segments[1].token_ids, Kept(other))
    scattered = [*range(12), 14, 15, 20]
    run = llama.engine.begin(segments)
    run.compute(scattered)
    computed = [[x[:, :, scattered].clone() for x in run._overlay.group(g)] for g in range(2)]
    run.finish(none(segments))
    for g in range(2):
        assert all(torch.equal(x[:, :, scattered], y) for x, y in zip(run._overlay.group(g), computed[g], strict=True))


def test_the_source_of_a_passage_that_was_computed_is_not_asked(llama: Tiny) -> None:
    """Neither for the step that computes it nor later."""
    segments = alone(llama)
    run = llama.engine.begin(segments)
    run.compute(range(15))
    run.compute(range(15, 29))
    run.finish(none(segments))
    assert [asked(s) for s in segments[:3]] == [[], [], [0, 1]]


def test_a_step_in_the_middle_takes_earlier_passages_from_their_sources_once(llama: Tiny) -> None:
    """A passage that has arrived is read while a later one is computed, and later ones are not waited for."""
    segments = alone(llama)
    run = llama.engine.begin(segments)
    run.compute(range(9, 29))
    assert [asked(s) for s in segments[:3]] == [[0, 1], [], []]
    run.finish(none(segments))
    assert [asked(s) for s in segments[:3]] == [[0, 1], [], [0, 1]]


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_a_stopped_step_counts_for_nothing(tiny: Tiny, n_layers: int) -> None:
    """The loader has everything: the answer is the one without the step."""
    segments = alone(tiny)
    expected = tiny.engine.prefill(segments, none(segments)).first_logits
    stopped, calls = tiny.engine.begin(segments), count(1)
    assert not stopped.compute(range(15), lambda: next(calls) == n_layers)
    assert next(calls) == n_layers + 1
    assert list(stopped.computed) == []
    assert torch.equal(stopped.finish(none(segments)).first_logits, expected)


def test_what_a_stopped_step_wrote_over_is_placed_again(llama: Tiny) -> None:
    """The passage was in the cache when the step began."""
    segments = alone(llama)
    expected = llama.engine.prefill(segments, none(segments)).first_logits
    run = llama.engine.begin(segments)
    run.attention()
    assert not run.compute(range(9, 29), lambda: True)
    assert torch.equal(run.finish(none(segments)).first_logits, expected)


def test_a_prompt_goes_on_after_a_source_failed(tiny: Tiny) -> None:
    """What was lost is computed in the same cache, and what was computed before stays."""
    segments = exact(tiny)
    segments[1] = Segment(segments[1].token_ids, Lost())
    run = tiny.engine.begin(segments)
    run.compute(range(6))
    with pytest.raises(LoadFailed):
        run.finish(none(segments))
    run.compute(range(9, 29))
    logits = run.finish(none(segments)).first_logits
    torch.testing.assert_close(logits, tiny.logits(ids_of(segments)), rtol=0, atol=TOLERANCE)
    assert asked(segments[2]) == list(range(len(tiny.engine.identity.layout.groups)))


def test_a_row_whose_earlier_rows_are_nowhere_is_refused(llama: Tiny) -> None:
    """It would attend to uninitialised memory."""
    passages = random_passages(LENGTHS)
    segments = [Segment(tuple(p)) for p in passages]
    with pytest.raises(InvalidInputError, match="9 rows have no source and are not computed, the first is 0"):
        llama.engine.begin(segments).compute(range(9, 20))


@pytest.mark.parametrize("rows", [[], [3, 2], [2, 2], [-1], [sum(LENGTHS)]])
def test_rows_of_a_step_that_cannot_be_right_are_refused(llama: Tiny, rows: list[int]) -> None:
    """They index the cache."""
    with pytest.raises(InvalidInputError, match=f"at least one and ascend without repeats within 0 and {sum(LENGTHS) - 1}"):
        llama.engine.begin(alone(llama)[:3]).compute(rows)


@pytest.mark.parametrize("looks", [False, True])
def test_narrowing_that_keeps_every_row_equals_a_full_prefill(tiny: Tiny, looks: bool) -> None:
    """In front of every layer, the first of a group and others, and with the sources' rows in the cache below the computed ones."""
    segments = alone(tiny)
    generation = tiny.engine.begin(segments).finish(range(N_TOKENS), Drop(range(4), lambda rows: rows, looks))
    torch.testing.assert_close(generation.first_logits, tiny.logits(ids_of(segments)), rtol=0, atol=TOLERANCE)
    assert generation.work.layer_rows == 4 * N_TOKENS


def test_narrowing_that_drops_every_row_at_once_computes_nothing_again(tiny: Tiny) -> None:
    """The same as `none`, whatever was looked at below the first layer, where nothing has changed yet."""
    segments = alone(tiny)
    expected = tiny.engine.prefill(segments, none(segments)).first_logits
    narrowed = tiny.engine.begin(segments).finish(range(N_TOKENS), Drop([0], lambda rows: []))
    assert torch.equal(narrowed.first_logits, expected)
    assert narrowed.work.rows == tuple(none(segments))


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_dropped_rows_keep_their_stored_keys_and_values_from_their_layer_on(tiny: Tiny, layer: int, looks: bool) -> None:
    """Below it they have fresh ones, and in the layer itself if they were looked at; kept rows have fresh ones everywhere."""
    segments = alone(tiny)
    dropped, kept = [10, 11, 25, 30], [9, 12]
    run, whole = tiny.engine.begin(segments), tiny.engine.begin(segments)
    run.finish(range(N_TOKENS), Drop([layer], lambda rows: [r for r in rows if r not in dropped], looks))
    whole.finish(range(N_TOKENS))
    for index, group in enumerate(tiny.engine.identity.layout.groups):
        k, v = run._overlay.group(index)
        fresh_k, fresh_v = whole._overlay.group(index)
        for i, own in enumerate(group.layers):
            if own < layer + looks:
                same = [*dropped, *kept]
                torch.testing.assert_close(k[i, :, same], fresh_k[i, :, same], rtol=0, atol=TOLERANCE)
                torch.testing.assert_close(v[i, :, same], fresh_v[i, :, same], rtol=0, atol=TOLERANCE)
            else:
                stored_k, stored_v = stored_rows(tiny, segments, index, i)
                assert torch.equal(k[i, :, dropped], stored_k[:, dropped])
                assert torch.equal(v[i, :, dropped], stored_v[:, dropped])


def stored_rows(tiny: Tiny, segments: Sequence[Segment], index: int, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the stored K, rotated to the prompt, and V of one layer of a group, (H, T, D)."""
    chunks: list[KVChunk] = [s.source.passage[index] for s in segments if isinstance(s.source, Kept)]
    group = tiny.engine.identity.layout.groups[index]
    k = torch.cat([chunk.k[layer] for chunk in chunks], 1)
    cos, sin = tiny.engine._stack.table(group).first(k.shape[1])
    rotate(k, cos, sin, out=(rotated := torch.empty_like(k)))
    return rotated, torch.cat([chunk.v[layer] for chunk in chunks], 1)


def test_a_look_shows_fresh_and_stored_rows(tiny: Tiny) -> None:
    """Below the first layer a token's K and V are its own, so both agree; above it they differ, but not in the first passage."""
    segments = alone(tiny)
    narrowing = Drop([0, 1, 2], lambda rows: rows, looks=True)
    tiny.engine.begin(segments).finish(range(N_TOKENS), narrowing)
    for layer, change in enumerate(narrowing.seen):
        assert change.rows == tuple(range(sum(LENGTHS)))
        for fresh, old in zip(change.fresh, change.stored, strict=True):
            difference = (fresh - old).abs().amax((0, 2))
            assert difference[: LENGTHS[0]].max() < TOLERANCE
            assert (difference.max() > 1e-2) == (layer > 0)


def test_a_narrowing_that_drops_without_looking_waits_for_no_group_below(llama: Tiny) -> None:
    """What the layer axis needs: lower layers computed, upper ones loaded."""
    segments = alone(llama)
    llama.engine.begin(segments).finish(range(N_TOKENS), Drop([2], lambda rows: []))
    assert [asked(s) for s in segments[:3]] == [[1], [1], [1]]


def test_generation_goes_on_over_a_narrowed_cache(llama: Tiny) -> None:
    """Later tokens read what the rows left in each layer."""
    segments = alone(llama)
    steps = Sampling(max_new_tokens=6)
    narrowed = llama.engine.begin(segments, steps).finish(range(N_TOKENS), Drop([1, 2], lambda rows: rows, looks=True))
    assert list(narrowed) == llama.greedy(ids_of(segments), 6)


def test_attention_is_what_the_library_says(tiny: Tiny) -> None:
    """Mean over heads and question rows, in every layer, over a cache that a full prefill would have made."""
    segments = exact(tiny)
    found = tiny.engine.begin(segments).attention()
    tiny.reference.set_attn_implementation("eager")
    with torch.inference_mode():
        weights = tiny.reference(torch.tensor([ids_of(segments)]), output_attentions=True).attentions
    tiny.reference.set_attn_implementation("sdpa")
    expected = torch.stack([layer[0, :, -7:].mean((0, 1)) for layer in weights])
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(found.sum(1), torch.ones(4), rtol=0, atol=1e-5)


def test_attention_without_any_source_is_that_of_a_plain_prefill(llama: Tiny) -> None:
    """One causal block serves all rows there."""
    segments = exact(llama)
    plain = [Segment(s.token_ids) for s in segments]
    torch.testing.assert_close(llama.engine.begin(plain).attention(), llama.engine.begin(segments).attention(), rtol=0, atol=TOLERANCE)


def test_looking_at_attention_changes_no_answer(tiny: Tiny) -> None:
    """The question's rows are computed again behind the repair."""
    segments = alone(tiny)
    rows = sorted({*always_computed(segments), 9, 10, 30})
    run = tiny.engine.begin(segments)
    run.attention()
    assert torch.equal(run.finish(rows).first_logits, tiny.engine.prefill(segments, rows).first_logits)
