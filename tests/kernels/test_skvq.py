"""SKVQ's arithmetic: groups anywhere, ranges cut, parameters in a byte."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kvkernels import skvq

UNIT = torch.tensor([0.25, 2.0])


def values(n_tokens: int, dim: int = 20, seed: int = 0) -> torch.Tensor:
    """Return (2, 3, T, D) normal values."""
    return torch.randn(2, 3, n_tokens, dim, generator=torch.Generator().manual_seed(seed))


def roundtrip(
    x: torch.Tensor, groups: torch.Tensor, n_groups: int, levels: int, parameters: str = "float16", clip: float = 1.0
) -> torch.Tensor:
    """Encode and decode."""
    parts = skvq.encode(x, groups, n_groups, torch.full((2,), clip), UNIT, levels, parameters)
    return skvq.decode(*parts, groups, UNIT, x.shape[1], levels, x.dtype)


def random_groups(n_channels: int, n_groups: int) -> torch.Tensor:
    """Return groups (2, C) that lie scattered, some of them possibly empty."""
    return torch.randint(0, n_groups, (2, n_channels), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("levels", skvq.LEVELS)
@pytest.mark.parametrize("n_tokens", [1, 127, 128, 129])
def test_an_element_is_off_by_half_a_step_of_its_group(n_tokens: int, levels: int) -> None:
    """And by what float16 leaves of the parameters: 2**-11 of low once and of the scale levels - 1 times, and of a value cut at the end."""
    x, groups = values(n_tokens), random_groups(60, 5)
    back = roundtrip(x, groups, 5, levels)
    for layer in range(2):
        for group in range(5):
            of = (groups[layer] == group).nonzero()[:, 0]
            before, after = (y[layer].transpose(0, 1).flatten(1)[:, of] for y in (x, back))
            spread, largest = before.amax(1) - before.amin(1), before.abs().amax(1)
            bound = spread / (levels - 1) / 2 + 2.0**-10 * (spread + largest) + 1e-6
            assert ((before - after).abs() <= bound[:, None]).all()


def test_groups_need_not_lie_together() -> None:
    """Moving channels with their groups moves what comes back, and changes nothing else."""
    x, groups = values(9), random_groups(60, 4)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    moved = torch.unflatten(x.transpose(1, 2).flatten(2)[..., order], 2, (3, 20)).transpose(1, 2)
    back = roundtrip(x, groups, 4, 4).transpose(1, 2).flatten(2)[..., order]
    assert torch.equal(roundtrip(moved, groups[:, order], 4, 4).transpose(1, 2).flatten(2), back)


def test_clipping_shrinks_a_range_about_its_middle() -> None:
    x = torch.tensor([8.0, 9.0, 11.0, 12.0]).view(1, 1, 1, 4).repeat(2, 1, 1, 1)
    back = roundtrip(x, torch.zeros(2, 4, dtype=torch.int64), 1, 4, clip=0.5)
    assert back[0].flatten().tolist() == pytest.approx([9.0, 9.0, 11.0, 11.0], abs=0.02)


@pytest.mark.parametrize("parameters", skvq.PARAMETERS)
def test_a_group_of_equal_values_comes_back_as_its_zero(parameters: str) -> None:
    """0.75 is exact in float8."""
    x = torch.full((2, 3, 5, 20), 0.75)
    assert torch.equal(roundtrip(x, random_groups(60, 3), 3, 4, parameters), x)


@pytest.mark.parametrize("parameters", skvq.PARAMETERS)
def test_parameters_beyond_their_type_stay_finite(parameters: str) -> None:
    x = values(5) * 1e30
    assert torch.isfinite(roundtrip(x, random_groups(60, 3), 3, 4, parameters)).all()


def test_parameters_of_an_empty_group_are_zero() -> None:
    _, scale, zero = skvq.encode(values(3), torch.ones(2, 60, dtype=torch.int64), 3, torch.ones(2), UNIT, 4, "float16")
    assert not scale[..., [0, 2]].any()
    assert not zero[..., [0, 2]].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_comes_back_has_the_type_asked_for(dtype: torch.dtype) -> None:
    assert roundtrip(values(3).to(dtype), random_groups(60, 3), 3, 4).dtype == dtype


def test_groups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="must lie within 0 and 2, got 3 to 3"):
        roundtrip(values(3), torch.full((2, 60), 3), 3, 4)
    with pytest.raises(ValueError, match=r"expected torch\.int64"):
        roundtrip(values(3), torch.zeros(2, 59, dtype=torch.int64), 3, 4)


GRIDS = [(1, 20, 5), (9, 24, 3), (5, 7, 6)]
"""Tokens, channels of one of three heads, and groups, of which some may be empty."""


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Tell whether two tensors of one type hold the same bytes."""
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@pytest.mark.parametrize("parameters", skvq.PARAMETERS)
@pytest.mark.parametrize("levels", skvq.LEVELS)
@pytest.mark.parametrize(("n_tokens", "dim", "n_groups"), GRIDS)
def test_the_kernel_encodes_to_the_reference_s_bits(
    kernel: Callable[..., Any], n_tokens: int, dim: int, n_groups: int, levels: int, parameters: str
) -> None:
    """Every operation is rounded once and none are fused; one group has no range, and a value lies far out."""
    x, groups = values(n_tokens, dim), random_groups(3 * dim, n_groups)
    x[:, 0, :, 0] = 1e30
    x[0].transpose(0, 1).flatten(1)[:, groups[0] == 1] = 0.75
    clip = torch.tensor([1.0, 0.88])
    found, _ = kernel("skvq", "encode", x, groups, n_groups, clip, UNIT, levels, parameters)
    expected = skvq.reference_encode(x, groups, n_groups, clip, UNIT, levels, parameters)
    assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_kernel_encodes_every_dtype(kernel: Callable[..., Any], dtype: torch.dtype) -> None:
    x, groups = values(9).to(dtype), random_groups(60, 4)
    found, _ = kernel("skvq", "encode", x, groups, 4, torch.ones(2), UNIT, 3, "float8")
    expected = skvq.reference_encode(x, groups, 4, torch.ones(2), UNIT, 3, "float8")
    assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("levels", skvq.LEVELS)
@pytest.mark.parametrize(("n_tokens", "dim", "n_groups"), GRIDS)
def test_the_kernel_decodes_any_bytes_to_the_reference_s_bits(
    kernel: Callable[..., Any], n_tokens: int, dim: int, n_groups: int, levels: int, dtype: torch.dtype
) -> None:
    """Bytes that no encoder writes are some codes; parameters are any finite ones."""
    draw, groups = torch.Generator().manual_seed(3), random_groups(3 * dim, n_groups)
    codes_shape, parameter_shape = skvq.stored_shapes(2, n_tokens, 3 * dim, levels, n_groups)
    codes = torch.randint(0, 256, codes_shape, generator=draw, dtype=torch.uint8)
    for parameter in skvq.PARAMETERS.values():
        scale, zero = (torch.randn(parameter_shape, generator=draw).to(parameter) for _ in range(2))
        back, _ = kernel("skvq", "decode", codes, scale, zero, groups, UNIT, 3, levels, dtype)
        assert same_bits(back, skvq.reference_decode(codes, scale, zero, groups, UNIT, 3, levels, dtype))


def test_no_tokens_make_no_bytes(kernel: Callable[..., Any]) -> None:
    """The boundary below one token."""
    groups = random_groups(60, 4)
    parts, _ = kernel("skvq", "encode", values(0), groups, 4, torch.ones(2), UNIT, 4, "float16")
    assert parts[0].shape == (2, 0, 15)
    back, _ = kernel("skvq", "decode", *parts, groups, UNIT, 3, 4, torch.float32)
    assert back.shape == (2, 3, 0, 20)
