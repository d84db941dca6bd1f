"""Errors of K, V and attention: zero for what is equal, and what a hand calculation says for what is not."""

from __future__ import annotations

import pytest
import torch

from kvstore.core.identity import KVLayout, LayerGroup, RopeSpec
from kvworker.chunk import KVChunk
from kvworker.engine.rope import placed, unplaced
from kvworker.quality.errors import attention_output, errors_of

ROPE = RopeSpec("default", 10000.0, 8, ())
GROUP = LayerGroup((3, 4), 2, 8, 6, ROPE)
LAYOUT = KVLayout((GROUP,))


def chunk(seed: int) -> KVChunk:
    """Return ten random tokens of two layers and two heads."""
    rng = torch.Generator().manual_seed(seed)
    return KVChunk(torch.randn(2, 2, 10, 8, generator=rng), torch.randn(2, 2, 10, 6, generator=rng))


def probes(seed: int = 9) -> dict[int, torch.Tensor]:
    """Return five queries of four heads for each layer."""
    rng = torch.Generator().manual_seed(seed)
    return {layer: torch.randn(4, 5, 8, generator=rng) for layer in (3, 4)}


def test_nothing_is_off_in_equal_chunks() -> None:
    errors = errors_of((chunk(0),), (chunk(0),), LAYOUT, probes())
    assert (errors.k, errors.v, errors.mean_attention) == (0.0, 0.0, 0.0)


def test_scaled_values_are_off_by_their_factor_everywhere() -> None:
    """Attention is linear in V: each of the errors is 0.25."""
    before = chunk(0)
    errors = errors_of((before,), (KVChunk(before.k, before.v * 1.25),), LAYOUT, probes())
    assert errors.k == 0.0
    assert errors.v == pytest.approx(0.25)
    assert dict(errors.attention) == pytest.approx({3: 0.25, 4: 0.25})


def test_the_worst_layer_is_the_one_that_changed() -> None:
    before = chunk(0)
    k = before.k.clone()
    k[1] += 1
    assert errors_of((before,), (KVChunk(k, before.v),), LAYOUT, probes()).worst_layer == 4


def test_without_probes_attention_is_not_judged() -> None:
    errors = errors_of((chunk(0),), (chunk(1),), LAYOUT, {})
    assert errors.worst_layer is None
    assert errors.mean_attention == 0.0


def test_attention_is_read_as_grouped_heads_read_it() -> None:
    """Query heads 0 and 1 read KV head 0, the others head 1, from the rows right behind the passage."""
    own, asked = chunk(0), probes()[3]
    found = attention_output(own, 0, GROUP, asked)
    q = placed(asked[2], ROPE, 10)
    weights = torch.softmax(q @ placed(own.k[0, 1], ROPE, 0).T, -1)
    torch.testing.assert_close(found[1, :5], weights @ own.v[0, 1])


def test_a_window_hides_what_lies_before_it() -> None:
    windowed = LayerGroup((3, 4), 2, 8, 6, ROPE, "window", 4)
    own = chunk(0)
    hidden = KVChunk(torch.cat((own.k[:, :, :6] * 7, own.k[:, :, 6:]), 2), own.v)
    torch.testing.assert_close(attention_output(own, 0, windowed, probes()[3]), attention_output(hidden, 0, windowed, probes()[3]))


@pytest.mark.parametrize("spec", [None, ROPE, RopeSpec("linear", 10000.0, 6, (("factor", 4.0),))], ids=["none", "default", "partial"])
def test_what_is_placed_is_brought_back(spec: RopeSpec | None) -> None:
    """Two float32 turns of values up to 4: 4 * 2 * 2**-23 < 1e-5."""
    x = chunk(0).k[0]
    torch.testing.assert_close(unplaced(placed(x, spec, 37), spec, 37), x, rtol=0, atol=1e-5)
