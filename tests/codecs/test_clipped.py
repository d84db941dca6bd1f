"""Searched ranges on the synthetic layer: what they are worth beside KIVI's at the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch

from kvkernels import clipped, kivi
from tests.codecs.synth import Synthetic, layer, relative_error
from tests.codecs.synth_model import attention_error

Encode = Callable[[torch.Tensor, int, int, kivi.Axis], kivi.Parts]


@cache
def text() -> Synthetic:
    """Return the text that is coded."""
    return layer(0)


@cache
def values(encode: Encode, bits: int) -> torch.Tensor:
    """Return V coded in groups of 64 and decoded."""
    v = text().v
    return kivi.decode(*encode(v, bits, 64, "channel"), v.shape, bits, 64, "channel", v.dtype)


@pytest.mark.parametrize(("bits", "own", "theirs"), [(2, 0.328, 0.448), (3, 0.170, 0.192)])
def test_values_lose_less_for_the_same_bytes(bits: int, own: float, theirs: float) -> None:
    """The decisive check."""
    for encode, expected in ((clipped.encode, own), (kivi.encode, theirs)):
        assert relative_error(values(encode, bits), text().v) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("bits", "own", "theirs"), [(2, 0.591, 0.684), (3, 0.306, 0.321)])
def test_attention_loses_less_with_keys_as_they_were(bits: int, own: float, theirs: float) -> None:
    k = text().k
    keys = kivi.decode(*kivi.encode(k, bits, 64, "token"), k.shape, bits, 64, "token", k.dtype)
    for encode, expected in ((clipped.encode, own), (kivi.encode, theirs)):
        assert attention_error(text(), keys, values(encode, bits)) == pytest.approx(expected, rel=0.02)
