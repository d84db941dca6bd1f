"""KVQuant on the synthetic layer: what each of its parts is worth, and what it takes."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from kvkernels import kvquant
from kvstore.core.errors import InvalidInputError
from kvworker.calibrate.levels import fit_levels
from kvworker.calibrate.statistics import Statistics
from kvworker.chunk import ChunkSpec, KVChunk
from kvworker.engine.rope import placed
from kvworker.methods.quantize.kvquant import Kvquant
from tests.codecs.synth import HEADS, layer, relative_error
from tests.codecs.synth_model import ROPE, attention_error, seen, statistics_of

LLAMA_8B = ChunkSpec(32, 8, 256, 128, 128, "bfloat16")


def coded(stage: Kvquant, kv: KVChunk, statistics: Statistics) -> KVChunk:
    """Return K and V of layer 0 coded and decoded by a stage that is fitted to other text."""
    ready, spec = stage.bound(stage.fit(statistics)), replace(kv.spec, layers=(0,))
    return KVChunk(*ready.decode(ready.encode(kv, spec), spec))


@cache
def missed(bits: int, outliers: int = 10) -> tuple[float, float, float]:
    """Return the errors of K, of V and of attention."""
    text = layer(0)
    back = coded(Kvquant(bits, bits, outliers), KVChunk(text.k, text.v), seen())
    return relative_error(back.k, text.k), relative_error(back.v, text.v), attention_error(text, back.k, back.v)


def test_every_bit_halves_the_error_of_keys_and_values() -> None:
    """As it should where levels are fitted: Lloyd-Max levels of a normal variable lose 0.34, 0.19 and 0.10 at 2, 3 and 4 bits."""
    k, v, _ = zip(*(missed(bits) for bits in (2, 3, 4)), strict=True)
    for errors in (k, v):
        assert errors[1] <= 0.6 * errors[0]
        assert errors[2] <= 0.6 * errors[1]


def test_an_outlier_of_a_hundred_values_is_worth_a_tenth_of_the_error() -> None:
    """The decisive check of outliers; the synthetic values are nearly normal within a token, real ones are not."""
    (k, v, attention), (dense_k, dense_v, dense_attention) = missed(3), missed(3, 0)
    assert v <= 0.9 * dense_v
    assert k < dense_k
    assert attention < dense_attention


def test_attention_feels_that_a_range_serves_a_whole_text() -> None:
    """0.232 at 4.33 bits: KIVI's ranges of 64 tokens follow the text, and lose 0.149 at 4.5."""
    assert missed(4)[2] == pytest.approx(0.232, rel=0.1)


def test_keys_lose_less_before_rope_than_after() -> None:
    """The decisive check of keys: a channel that RoPE turns has the range of both of its pair."""
    text, calibration = layer(0), layer(100)
    after = statistics_of(KVChunk(placed(calibration.k, ROPE, 0), calibration.v), calibration.q)
    turned = placed(text.k, ROPE, 0)
    assert relative_error(coded(Kvquant(), KVChunk(turned, text.v), after).k, turned) >= 1.1 * missed(3)[0]


def test_fitted_levels_lose_less_than_even_ones() -> None:
    """The decisive check of levels: equal steps between the same ends."""
    text, stage = layer(0), Kvquant()
    tables = dict(stage.fit(seen())[0])
    back = {}
    for name in ("fitted", "even"):
        if name == "even":
            tables |= {f"{side}.levels": torch.linspace(-7 / 8, 7 / 8, 8) for side in "kv"}
        ready, spec = stage.bound({0: tables}), replace(KVChunk(text.k, text.v).spec, layers=(0,))
        back[name] = ready.decode(ready.encode(KVChunk(text.k, text.v), spec), spec)
    for fitted, even, x in zip(back["fitted"], back["even"], (text.k, text.v), strict=True):
        assert relative_error(fitted, x) < relative_error(even, x)


def test_weighing_by_what_an_error_costs_is_worth_it() -> None:
    """Queries that look at few channels, and attention on few tokens: levels that know lose less of what counts."""
    text, calibration = layer(0), layer(100)
    kv, uneven = KVChunk(text.k, text.v), torch.randn(HEADS, 1, text.k.shape[-1], generator=torch.Generator().manual_seed(3)).exp()
    know = statistics_of(KVChunk(calibration.k, calibration.v), calibration.q * uneven)
    even = replace(know, layers={0: replace(know.layers[0], q_square=torch.ones_like(know.layers[0].q_square))})
    costs = (text.q * uneven).square().mean(1)[:, None]  # (H, 1, D)
    errors = [float(((coded(Kvquant(2, 2), kv, s).k - kv.k)[0].square() * costs).sum()) for s in (know, even)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize(("bits", "expected"), [(4, 4.33), (3, 3.33), (2, 2.33)])
def test_a_model_with_1024_channels_takes_the_bits_of_the_paper(bits: int, expected: float) -> None:
    """4.32, 3.32 and 2.32 of a token of 1,024 channels; ten outliers of 32 bits each, and a range for V."""
    layout = Kvquant(bits, bits).layout(LLAMA_8B).values()
    nbytes = sum(math.prod(shape) * (2 if dtype == "bfloat16" else 1) for dtype, shape in layout)
    assert 8 * nbytes / LLAMA_8B.n_values == pytest.approx(expected, abs=0.01)


def test_outliers_come_back_as_they_were() -> None:
    """One value of a thousand times the others' size spoils nothing."""
    kv = KVChunk(layer(0, 64).k.bfloat16(), layer(0, 64).v.bfloat16())
    kv.v[0, 1, 5, 17] = 1000.0
    back = coded(Kvquant(), kv, seen())
    assert back.v[0, 1, 5, 17] == 1000.0
    assert relative_error(back.v[0, 0, 5], kv.v[0, 0, 5]) < 0.25


def test_the_narrowest_range_leaves_out_what_is_far() -> None:
    """Two of six, on whichever side."""
    x = torch.tensor([[0.0, 9.0, 1.0, 2.0, -7.0, 3.0], [0.0, 8.0, 1.0, 2.0, 9.0, 3.0]])
    outside, low, high = kvquant.narrowest(x, 2)
    assert outside.sort(1).values.tolist() == [[1, 4], [1, 4]]
    assert torch.cat((low, high), 1).tolist() == [[0.0, 3.0], [0.0, 3.0]]


def test_levels_are_where_values_are_and_heavy_values_draw_them() -> None:
    y = torch.tensor([-1.0, -1.0, 0.0, 1.0])
    assert fit_levels(y, torch.tensor([1.0, 1.0, 1.0, 3.0]), 2).tolist() == pytest.approx([-2 / 3, 1.0], abs=1e-6)


@pytest.mark.parametrize(("n_levels", "distortion"), [(4, 0.1175), (8, 0.0345), (16, 0.0095)])
def test_a_normal_variable_loses_what_lloyd_and_max_say(n_levels: int, distortion: float) -> None:
    """In 200,000 drawn values; a deviation is a quarter here, so that none lies beyond the ends by more than a few bins."""
    y = torch.randn(200_000, generator=torch.Generator().manual_seed(0)) / 4
    nearest = (y[:, None] - fit_levels(y, torch.ones_like(y), n_levels)).abs().amin(1)
    assert 16 * float(nearest.square().mean()) == pytest.approx(distortion, rel=0.02)


@pytest.mark.parametrize("params", [{"k_bits": 1}, {"v_bits": 5}, {"outliers": 101}, {"outliers": -1}])
def test_what_it_cannot_do_is_refused(params: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError, match="choose bits in"):
        Kvquant(**params)
