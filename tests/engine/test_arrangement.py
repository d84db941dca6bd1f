"""Passages that see only themselves, loaded or computed, one after the other or side by side: compared with masks written out in full."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from kvstore.core.errors import InvalidInputError
from kvworker.engine.arrangement import Arrangement, arrangement_of
from kvworker.engine.attention import Sight, attend, sight_of
from kvworker.engine.engine import Apart, Parallel, Segment, always_computed, spans_of
from kvworker.engine.sampling import Sampling
from tests.engine.prompts import Tiny, ids_of, random_passages, random_question, stored
from tests.engine.test_splice import mask_argument, windows_of

TOLERANCE = 1e-4  # as in the splice tests
CPU = torch.device("cpu")
LENGTHS = (9, 14, 6)
PLAIN = Parallel(1.0, 1.0)


def seen(sight: Sight, n_rows: int, n_tokens: int) -> torch.Tensor:
    """Return the dense mask (rows, keys) that the blocks of a sight stand for."""
    visible = torch.zeros(n_rows, n_tokens, dtype=torch.bool)
    for block in sight.blocks:
        own = torch.ones(block.stop - block.start, block.behind - block.first, dtype=torch.bool)
        if block.is_causal:
            own = own.tril(own.shape[1] - own.shape[0])
        elif block.mask is not None:
            own = block.mask == 0
        visible[block.start : block.stop, block.first : block.behind] = own
    return visible


def random_segments(draw: random.Random) -> list[Segment]:
    """Return up to six segments, some of which stand apart."""
    lengths = [draw.randint(1, 12) for _ in range(draw.randint(1, 6))]
    return [Segment((0,) * n, apart=draw.choice([None, Apart()])) for n in lengths]


def sees(row: int, key: int, segments: Sequence[Segment], window: int) -> bool:
    """Tell whether a row sees a key, from the definition: its own segment and, unless it stands apart, everything before."""
    start = 0
    for segment in segments:
        stop = start + len(segment.token_ids)
        if start <= row < stop and segment.apart and not start <= key:
            return False
        start = stop
    return key <= row and (not window or row - key < window)


@pytest.mark.parametrize("seed", range(10))
def test_the_mask_of_segments_is_the_brute_force_mask(seed: int) -> None:
    """A hundred random segmentations each: rows of any choice, with and without a window."""
    draw = random.Random(seed)
    for _ in range(100):
        segments, window = random_segments(draw), draw.choice([0, 0, 3, 7])
        n_tokens = spans_of(segments)[-1].stop + draw.randint(0, 2)  # generated tokens come behind
        rows = sorted(draw.sample(range(n_tokens), draw.randint(1, n_tokens)))
        sight = sight_of(rows, window, torch.float32, CPU, arrangement_of(segments))
        expected = torch.tensor([[sees(row, key, segments, window) for key in range(rows[-1] + 1)] for row in rows])
        assert torch.equal(seen(sight, len(rows), rows[-1] + 1), expected)


@pytest.mark.parametrize("apart", [None, Apart()])
def test_one_segment_is_exactly_causal(apart: Apart | None) -> None:
    """There is nothing else that it could see."""
    sight = sight_of(range(50), 0, torch.float32, CPU, arrangement_of([Segment((0,) * 50, apart=apart)]))
    assert torch.equal(seen(sight, 50, 50), torch.ones(50, 50, dtype=torch.bool).tril())


def test_segments_that_do_not_stand_apart_need_no_arrangement() -> None:
    """The usual prompt keeps the fastest mask, which is none."""
    assert arrangement_of([Segment((1, 2)), Segment((3,))]) == Arrangement()


def test_positions_of_segments_side_by_side_begin_together_and_go_on_behind_the_longest() -> None:
    """Two tokens before, segments of three and five, two tokens behind and a generated one."""
    segments = [Segment((0, 0)), Segment((1,) * 3, apart=PLAIN), Segment((1,) * 5, apart=PLAIN), Segment((2, 2))]
    arrangement = arrangement_of(segments)
    assert [arrangement.position(row) for row in range(13)] == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 8, 9]
    assert arrangement.n_positions(12) == 9


@pytest.mark.parametrize(
    "aparts", [(PLAIN, Parallel(0.9, 1.0), None), (PLAIN, None, PLAIN), (PLAIN, Apart(), PLAIN)], ids=["weights", "between", "apart"]
)
def test_segments_that_cannot_stand_side_by_side_are_refused(aparts: Sequence[Apart | None]) -> None:
    """They share one range of positions and are weighed as one."""
    with pytest.raises(InvalidInputError, match="must be neighbours with one temperature and one scale"):
        arrangement_of([Segment((1, 2), apart=apart) for apart in aparts])


def alone(tiny: Tiny, apart: Apart, lengths: Sequence[int] = LENGTHS) -> list[Segment]:
    """Return a prompt of passages that were read alone and stand so, and a question."""
    passages = random_passages(lengths)
    segments = stored(passages, [tiny.engine.export([p])[0] for p in passages], random_question())
    return [*(replace(s, apart=apart) for s in segments[:-1]), segments[-1]]


def under_mask(tiny: Tiny, segments: Sequence[Segment]) -> torch.Tensor:
    """Return the library's last logits under the mask that the segments mean."""
    n_tokens = spans_of(segments)[-1].stop
    masks = {
        window: torch.tensor([[sees(row, key, segments, window) for key in range(n_tokens)] for row in range(n_tokens)])
        for window in windows_of(tiny)
    }
    with torch.inference_mode():
        logits: torch.Tensor = tiny.reference(torch.tensor([ids_of(segments)]), attention_mask=mask_argument(tiny, masks)).logits[0, -1]
    return logits


@pytest.mark.parametrize("computed", [(), (1,), (0, 2), (0, 1, 2)], ids=str)
def test_loaded_or_computed_passages_equal_a_prefill_under_the_block_mask(tiny: Tiny, computed: Sequence[int]) -> None:
    """Block-Attention and TurboRAG are trained for this mask; what is missing in the store is computed as it would have been read."""
    segments = [replace(s, source=None) if i in computed else s for i, s in enumerate(alone(tiny, Apart()))]
    generation = tiny.engine.prefill(segments, always_computed(segments))
    torch.testing.assert_close(generation.first_logits, under_mask(tiny, segments), rtol=0, atol=TOLERANCE)


def test_passages_computed_in_any_order_equal_a_prefill_under_the_block_mask(llama: Tiny) -> None:
    """As when computing races loading."""
    segments = alone(llama, Apart())
    run = llama.engine.begin(segments)
    assert run.compute(range(23, 29))
    assert run.compute(range(9, 23))
    torch.testing.assert_close(run.finish(range(29, 36)).first_logits, under_mask(llama, segments), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("temperature", [0.5, 0.9, 1.0, 2.0])
@pytest.mark.parametrize("scale", [0.9, 1.0, 1.5])
def test_weighed_attention_merges_two_parts_by_their_log_sums(temperature: float, scale: float) -> None:
    """The definition in APE (arXiv 2502.05431): two attentions, merged by S * T * lse of that over contexts and lse of the other."""
    generator = torch.Generator().manual_seed(0)
    n_tokens, contexts = 20, slice(3, 15)
    q = torch.randn(1, 4, 5, 8, generator=generator)
    k, v = torch.randn(2, 1, 2, n_tokens, 8, generator=generator)
    segments = [
        Segment((0, 0)),
        Segment((7,) * 7, apart=Parallel(temperature, scale)),
        Segment((7,) * 6, apart=Parallel(temperature, scale)),
        Segment((0,) * 5),
    ]
    out, _ = attend(torch.nn.Identity(), q, k, v, sight_of(range(15, 20), 0, torch.float32, CPU, arrangement_of(segments)), scaling=8**-0.5)
    keys, values = (x[0].repeat_interleave(2, 0) for x in (k, v))
    for i, row in enumerate(range(15, 20)):
        scores = keys @ q[0, :, i, :, None] / 8**0.5
        inside = [j for j in range(*contexts.indices(n_tokens)) if j != 9]  # the second segment's first token says what the first's says
        outside = [0, 1, 2, *range(15, row + 1)]
        one, other = scores[:, inside, 0] / temperature, scores[:, outside, 0]
        masses = torch.stack([scale * temperature * one.logsumexp(-1), other.logsumexp(-1)], -1).softmax(-1)
        parts = [(x.softmax(-1)[:, None] @ values[:, which])[:, 0] for x, which in ((one, inside), (other, outside))]
        expected = masses[:, :1] * parts[0] + masses[:, 1:] * parts[1]
        torch.testing.assert_close(out[0, i], expected, rtol=0, atol=1e-5)


def test_plain_weights_over_one_context_are_plain_attention() -> None:
    """T = S = 1 changes nothing but the order of summation."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 4, 5, 8, generator=generator)
    k, v = torch.randn(2, 1, 2, 20, 8, generator=generator)
    segments = [Segment((7,) * 15, apart=PLAIN), Segment((0,) * 5)]
    out, _ = attend(torch.nn.Identity(), q, k, v, sight_of(range(15, 20), 0, torch.float32, CPU, arrangement_of(segments)), scaling=8**-0.5)
    mask = torch.ones(5, 20, dtype=torch.bool).tril(15)
    expected = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=8**-0.5, enable_gqa=True)
    torch.testing.assert_close(out, expected.transpose(1, 2), rtol=0, atol=1e-6)


def test_attention_does_not_depend_on_the_order_of_contexts() -> None:
    """In one layer, whose sums are made in another order."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 4, 5, 8, generator=generator)
    k, v = torch.randn(2, 1, 2, 20, 8, generator=generator)
    k[:, :, 9], v[:, :, 9] = k[:, :, 0], v[:, :, 0]  # the own BOS of both
    one, other, question = Segment((7,) * 9, apart=Parallel(0.9, 0.8)), Segment((7,) * 6, apart=Parallel(0.9, 0.8)), Segment((0,) * 5)
    turned = [*range(9, 15), *range(9), *range(15, 20)]
    outs = []
    for segments, keys, values in (([one, other, question], k, v), ([other, one, question], k[:, :, turned], v[:, :, turned])):
        sight = sight_of(range(15, 20), 0, torch.float32, CPU, arrangement_of(segments))
        outs.append(attend(torch.nn.Identity(), q, keys, values, sight, scaling=8**-0.5)[0])
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=1e-6)


def test_one_context_with_plain_weights_equals_a_full_prefill(tiny: Tiny) -> None:
    """With windows too, and over ten generated tokens."""
    segments = alone(tiny, PLAIN, (20,))
    generation = tiny.engine.prefill(segments, always_computed(segments), Sampling(max_new_tokens=10))
    torch.testing.assert_close(generation.first_logits, tiny.logits(ids_of(segments)), rtol=0, atol=TOLERANCE)
    assert list(generation) == tiny.greedy(ids_of(segments), 10)


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (1, 2, 0)], ids=str)
def test_the_order_of_contexts_changes_nothing(tiny: Tiny, order: Sequence[int]) -> None:
    """Which no sequential prompt satisfies. Sums are made in another order, in four layers: 9e-7 of the largest logit was observed."""
    segments = alone(tiny, Parallel(0.9, 0.9))
    moved = [*(segments[i] for i in order), segments[-1]]
    one, other = (tiny.engine.prefill(s, always_computed(s)).first_logits for s in (segments, moved))
    torch.testing.assert_close(one, other, rtol=0, atol=3e-6 * float(one.abs().max()))


@pytest.mark.parametrize("computed", [(1,), (0, 1, 2)], ids=str)
def test_contexts_computed_side_by_side_equal_loaded_ones(tiny: Tiny, computed: Sequence[int]) -> None:
    """What the store lacks is computed as it would have been read."""
    segments = alone(tiny, Parallel(0.8, 0.9))
    lacking = [replace(s, source=None) if i in computed else s for i, s in enumerate(segments)]
    one, other = (tiny.engine.prefill(s, always_computed(s), Sampling(max_new_tokens=10)) for s in (segments, lacking))
    torch.testing.assert_close(one.first_logits, other.first_logits, rtol=0, atol=TOLERANCE)
    assert list(one) == list(other)
