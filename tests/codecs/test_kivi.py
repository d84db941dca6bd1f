"""KIVI on the synthetic layer: what grouping each side along its own axis is worth, and what attention feels of it."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from kvkernels import kivi
from tests.codecs.synth import Synthetic, layer, relative_error
from tests.codecs.synth_model import attention_error


@cache
def text() -> Synthetic:
    """Return the text that is coded."""
    return layer(0)


@cache
def back(side: str, bits: int, group: int, axis: kivi.Axis) -> torch.Tensor:
    """Return K or V coded and decoded."""
    x: torch.Tensor = getattr(text(), side)
    return kivi.decode(*kivi.encode(x, bits, group, axis), x.shape, bits, group, axis, x.dtype)


def test_two_bits_lose_what_the_method_file_says() -> None:
    """The decisive check: K per channel before RoPE 0.172, V per token 0.39."""
    assert relative_error(back("k", 2, 32, "token"), text().k) == pytest.approx(0.172, rel=0.1)
    assert relative_error(back("v", 2, 32, "channel"), text().v) == pytest.approx(0.39, rel=0.1)


def test_keys_by_channel_lose_a_fraction_of_keys_by_token() -> None:
    """A few channels are always large: a token's step is theirs."""
    assert relative_error(back("k", 2, 32, "token"), text().k) < 0.5 * relative_error(back("k", 2, 32, "channel"), text().k)


@pytest.mark.parametrize(("bits", "group", "expected"), [(4, 64, 0.144), (2, 32, 0.60)])
def test_attention_is_off_by_what_the_method_file_says(bits: int, group: int, expected: float) -> None:
    """4.5 bits and 3.0 bits."""
    error = attention_error(text(), back("k", bits, group, "token"), back("v", bits, group, "channel"))
    assert error == pytest.approx(expected, rel=0.1)
