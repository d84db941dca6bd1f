"""Narrow parameters and ranges of least squares on the synthetic layer, beside KIVI in groups of 64, which takes as many bits."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from kvkernels import clipped, kivi
from tests.codecs.synth import Synthetic, layer, relative_error
from tests.codecs.synth_model import attention_error


@cache
def text() -> Synthetic:
    """Return the text that is coded."""
    return layer(0)


def own(x: torch.Tensor, bits: int, axis: kivi.Axis, fit: clipped.Fit) -> torch.Tensor:
    """Return x coded in groups of 32 and decoded: bits + 0.5 and a little a value."""
    return clipped.decode(clipped.encode(x, bits, 32, axis, fit), x.shape, bits, 32, axis, x.dtype)


def theirs(x: torch.Tensor, bits: int, axis: kivi.Axis) -> torch.Tensor:
    """Return x coded in KIVI's groups of 64 and decoded: bits + 0.5 a value."""
    return kivi.decode(*kivi.encode(x, bits, 64, axis), x.shape, bits, 64, axis, x.dtype)


@pytest.mark.parametrize(("bits", "lost", "of_kivi"), [(2, 0.305, 0.448), (3, 0.151, 0.192), (4, 0.0741, 0.0894)])
def test_values_lose_less_for_the_same_bits(bits: int, lost: float, of_kivi: float) -> None:
    """The decisive check."""
    v = text().v
    found = [relative_error(back, v) for back in (own(v, bits, "channel", clipped.least_squares), theirs(v, bits, "channel"))]
    assert found == pytest.approx([lost, of_kivi], rel=0.02)


@pytest.mark.parametrize(("bits", "lost", "of_kivi"), [(2, 0.507, 0.684), (3, 0.233, 0.321), (4, 0.118, 0.149)])
def test_attention_loses_less_for_the_same_bits(bits: int, lost: float, of_kivi: float) -> None:
    k, v = text().k, text().v
    coded = own(k, bits, "token", clipped.whole_range), own(v, bits, "channel", clipped.least_squares)
    found = [attention_error(text(), *sides) for sides in (coded, (theirs(k, bits, "token"), theirs(v, bits, "channel")))]
    assert found == pytest.approx([lost, of_kivi], rel=0.02)


@pytest.mark.parametrize(("bits", "wide"), [(2, 0.1727), (3, 0.0733), (4, 0.0341)])
def test_parameters_of_a_byte_cost_nothing(bits: int, wide: float) -> None:
    """KIVI's keys in groups of 32 with parameters of 16 bits lose as much."""
    k = text().k
    assert relative_error(own(k, bits, "token", clipped.whole_range), k) == pytest.approx(wide, rel=0.01)
