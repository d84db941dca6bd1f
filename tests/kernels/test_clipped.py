"""Ranges that lose least: never more than KIVI's, with parts that KIVI decodes."""

from __future__ import annotations

import pytest
import torch

from kvkernels import clipped, kivi

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
each_axis = pytest.mark.parametrize("axis", kivi.AXES)


def values(n_tokens: int, dim: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return x (2, T, D) of which one channel is large."""
    x = torch.randn(2, n_tokens, dim, generator=torch.Generator().manual_seed(0))
    x[..., 0] += 10
    return x.to(dtype)


def group_losses(x: torch.Tensor, parts: kivi.Parts, bits: int, group: int, axis: kivi.Axis) -> torch.Tensor:
    """Return the squared error of every group, in float64."""
    back = kivi.reference_decode(*parts, x.shape, bits, group, axis, torch.float32)
    along = -2 if axis == "token" else -1
    squares = (back.double() - x.double()).square().movedim(along, -1)
    return torch.stack([part.sum(-1) for part in squares.split(group, -1)], -1)


@each_axis
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", kivi.BITS)
@pytest.mark.parametrize("n_tokens", [1, 63, 257])
def test_no_group_loses_more_than_with_kivi(n_tokens: int, bits: int, dtype: torch.dtype, axis: kivi.Axis) -> None:
    """KIVI's range is the first that is tried. Slack: losses are compared in float32, each off by some 64 roundings of its sum."""
    x = values(n_tokens, 40, dtype)
    own, theirs = (group_losses(x, encode(x, bits, 32, axis), bits, 32, axis) for encode in (clipped.encode, kivi.reference_encode))
    assert (own <= theirs * (1 + 64 * 2.0**-23) + 1e-9).all()


@pytest.mark.parametrize(("bits", "expected"), [(2, 0.307), (3, 0.151), (4, 0.074)])
def test_normal_values_lose_what_the_kernel_says(bits: int, expected: float) -> None:
    """KIVI loses 0.393, 0.168 and 0.078 in groups of 32."""
    x = torch.randn(1024, 32, generator=torch.Generator().manual_seed(1))
    losses = group_losses(x, clipped.encode(x, bits, 32, "channel"), bits, 32, "channel")
    assert float(losses.sum().sqrt() / x.norm()) == pytest.approx(expected, rel=0.02)


@each_axis
@pytest.mark.parametrize("bits", kivi.BITS)
def test_equal_values_come_back(bits: int, axis: kivi.Axis) -> None:
    """A group without any range has no step to search."""
    x = torch.full((1, 33, 9), 0.75)
    back = kivi.decode(*clipped.encode(x, bits, 32, axis), x.shape, bits, 32, axis, x.dtype)
    assert torch.equal(back, x)


def test_a_group_does_not_depend_on_those_beside_it() -> None:
    """A chunk's bytes must not change with what is coded along with them."""
    x = values(96, 64)
    alone, whole = clipped.encode(x[1:, :, 8:40], 2, 32, "token"), clipped.encode(x, 2, 32, "token")
    assert all(torch.equal(one, all_of[1:, :, 8:40]) for one, all_of in zip(alone, whole, strict=True))
    alone, whole = clipped.encode(x[1:, 5:], 2, 32, "channel"), clipped.encode(x, 2, 32, "channel")
    assert all(torch.equal(one, all_of[1:, 5:]) for one, all_of in zip(alone, whole, strict=True))


def test_values_whose_squares_overflow_are_coded_as_kivi_codes_them() -> None:
    x = values(32, 32) * 2.0**110
    own, theirs = (encode(x, 2, 32, "token") for encode in (clipped.encode, kivi.reference_encode))
    assert all(torch.equal(mine, other) for mine, other in zip(own, theirs, strict=True))
