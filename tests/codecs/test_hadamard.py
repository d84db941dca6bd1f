"""Rotated codes: distortion of normal vectors, and what keys with large channels lose."""

from __future__ import annotations

import pytest
import torch

from kvkernels import hadamard, kivi, turboquant
from tests.codecs.synth import layer, relative_error


def test_four_rotated_bits_lose_a_tenth() -> None:
    """The decisive check of `hadamard`, 4.25 bits: K 0.094 and V 0.099, with steps of a range of four and a half deviations in fifteen."""
    text = layer(0, 512)
    for x, expected in ((text.k, 0.094), (text.v, 0.099)):
        assert relative_error(hadamard.decode(*hadamard.encode(x, 4), 128, 4, torch.float32), x) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("bits", "distortion"), [(1, 0.363), (2, 0.1175), (3, 0.0345), (4, 0.0095)])
def test_turboquant_loses_of_a_normal_vector_what_lloyd_and_max_say(bits: int, distortion: float) -> None:
    """The decisive check: within 3 % (Lloyd-Max distortion of a standard normal variable)."""
    x = torch.randn(1, 4000, 128, generator=torch.Generator().manual_seed(0))
    back = turboquant.decode(*turboquant.encode(x, bits), 128, bits, torch.float32)
    assert relative_error(back, x) ** 2 == pytest.approx(distortion, rel=0.03)


def test_three_rotated_bits_lose_what_kivi_loses_with_as_many_bytes() -> None:
    """The decisive check of keys: 0.178 at 3.125 bits beside KIVI's 0.187 at 3.0 bits."""
    k = layer(0, 512).k
    rotated = relative_error(turboquant.decode(*turboquant.encode(k, 3), 128, 3, torch.float32), k)
    grouped = relative_error(kivi.decode(*kivi.encode(k, 2, 32, "token"), k.shape, 2, 32, "token", torch.float32), k)
    assert rotated == pytest.approx(0.178, rel=0.05)
    assert rotated == pytest.approx(grouped, rel=0.1)


def test_a_rotation_halves_the_error_of_coding_keys_token_by_token() -> None:
    """What QuaRot is for: without it, a token's few large channels set the step of all (here 0.09 and 0.10 with, 4 bits)."""
    k = layer(0, 512).k
    rotated = relative_error(hadamard.decode(*hadamard.encode(k, 3), 128, 3, torch.float32), k)
    plain = relative_error(kivi.decode(*kivi.encode(k, 3, 128, "channel"), k.shape, 3, 128, "channel", torch.float32), k)
    assert rotated < plain
    assert rotated == pytest.approx(0.2, rel=0.1)
