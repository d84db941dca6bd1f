"""P5: splitting by layers, and the better of both axes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.planners.layer_axis import better_axis, split_layers
from kvstore.planners.prefix_split import Split, split_prefix
from kvworker.bench.planner_oracles import best_prefix


@settings(max_examples=100)
@given(n_layers=st.integers(1, 80), layer_s=st.floats(1e-6, 1.0), load_s=st.floats(1e-6, 1.0))
def test_no_number_of_computed_layers_is_sooner(n_layers: int, layer_s: float, load_s: float) -> None:
    """T(m) = max(m * compute, (L - m) * load)."""
    assert split_layers([layer_s] * n_layers, [load_s] * n_layers).seconds == pytest.approx(
        best_prefix([layer_s] * n_layers, [load_s] * n_layers), rel=1e-9
    )


def test_layers_win_where_chunks_are_few() -> None:
    """One chunk of 2 s both ways can't be shared by tokens; of 4 layers with 0.5 s each way, two are computed beside two that load."""
    tokens, layers = split_prefix([2.0], [2.0]), split_layers([0.5] * 4, [0.5] * 4)
    assert better_axis(tokens, layers) == ("layers", layers)


def test_tokens_win_where_late_chunks_are_dear() -> None:
    """Rising costs: a prefix of half the tokens takes much less than half of the computing."""
    compute_s = [0.1 * i for i in range(1, 41)]
    load_s = [2.0] * 40
    layers = split_layers([sum(compute_s) / 32] * 32, [sum(load_s) / 32] * 32)
    assert better_axis(split_prefix(compute_s, load_s), layers).axis == "tokens"


def test_equal_axes_go_to_tokens() -> None:
    """A split by tokens can be raced, and meets wherever it turns out to."""
    same = Split(1, 1.0, 1.0, 1.0)
    assert better_axis(same, same).axis == "tokens"
