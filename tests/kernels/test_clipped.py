"""KIVI's codes with scales and zeros of a byte: what they cost, and what ranges of least squares gain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kvkernels import clipped, kivi

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FITS = (clipped.whole_range, clipped.least_squares)
each_axis = pytest.mark.parametrize("axis", kivi.AXES)
each_fit = pytest.mark.parametrize("fit", FITS, ids=lambda fit: fit.__name__)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def values(n_tokens: int, dim: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return x (2, T, D) of which one channel is far from zero and one is all alike."""
    x = torch.randn(2, n_tokens, dim, generator=torch.Generator().manual_seed(0))
    x[..., 0] += 10
    x[..., 1] = -0.75
    return x.to(dtype)


def decoded(parts: clipped.Parts, x: torch.Tensor, bits: int, group: int, axis: kivi.Axis) -> torch.Tensor:
    """Return what parts stand for, in float32."""
    return clipped.decode(parts, x.shape, bits, group, axis, torch.float32)


def spread(parameter: torch.Tensor, group: int, axis: kivi.Axis, like: torch.Tensor) -> torch.Tensor:
    """Repeat a parameter of groups for their values."""
    along = -2 if axis == "token" else -1
    return parameter.float().repeat_interleave(group, along).narrow(along, 0, like.shape[along])


@each_axis
@each_dtype
@pytest.mark.parametrize("bits", kivi.BITS)
@pytest.mark.parametrize("n_tokens", [1, 63, 257])
def test_a_whole_range_is_off_by_half_a_step_and_what_its_ends_moved(n_tokens: int, bits: int, dtype: torch.dtype, axis: kivi.Axis) -> None:
    """Half a 255th of the column's zeros, and of its largest scale at the topmost level. Parameters, and ends before them, are rounded to
    the dtype: its unit roundoff times |zero| and levels * |scale|, twice, and 2**-24 for what is subnormal in float16."""
    x = values(n_tokens, 40, dtype)
    parts = clipped.encode(x, bits, 32, axis, clipped.whole_range)
    scale = spread(clipped.parameters(*parts[1:])[0], 32, axis, x)
    least, most, top = (spread(end, 1 << 20 if axis == "token" else 32, axis, x) for end in parts.ends.split(1, -2))
    levels, roundoff = 2**bits - 1, torch.finfo(dtype).eps
    moved = ((most - least) + levels * top) / 510 + 2 * roundoff * (least.abs().maximum(most.abs()) + levels * top) + 2.0**-22
    assert ((decoded(parts, x, bits, 32, axis) - x.float()).abs() <= scale / 2 + moved).all()


@pytest.mark.parametrize(("bits", "whole", "least"), [(2, 0.393, 0.306), (3, 0.168, 0.152), (4, 0.078, 0.074)])
def test_normal_values_lose_what_the_kernel_says(bits: int, whole: float, least: float) -> None:
    """In groups of 32, with parameters of a byte; with those of 32 bits, KIVI loses as much as its range does here."""
    x = torch.randn(1024, 32, generator=torch.Generator().manual_seed(1))
    lost = [float((decoded(clipped.encode(x, bits, 32, "channel", fit), x, bits, 32, "channel") - x).norm() / x.norm()) for fit in FITS]
    assert lost == pytest.approx([whole, least], rel=0.02)


@each_axis
@each_fit
@pytest.mark.parametrize("bits", kivi.BITS)
def test_equal_values_come_back(bits: int, fit: clipped.Fit, axis: kivi.Axis) -> None:
    """A column without any range has no step."""
    x = torch.full((1, 33, 9), 0.75)
    assert torch.equal(decoded(clipped.encode(x, bits, 32, axis, fit), x, bits, 32, axis), x)


@each_fit
@each_dtype
@pytest.mark.parametrize("bits", kivi.BITS)
def test_the_largest_values_of_a_dtype_stay_finite(bits: int, dtype: torch.dtype, fit: clipped.Fit) -> None:
    """Rounding parameters up must not carry the topmost level beyond 65504."""
    most = min(torch.finfo(dtype).max, 2.0**126 * (1 - 2.0**-8))
    x = (torch.rand(2, 64, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1).mul_(most).to(dtype)
    x[0, 0], x[0, 1], x[1] = most, -most, most
    back = clipped.decode(clipped.encode(x, bits, 32, "token", fit), x.shape, bits, 32, "token", dtype)
    assert back.isfinite().all()


@each_fit
def test_a_group_depends_on_those_of_its_column_alone(fit: clipped.Fit) -> None:
    """A head's bytes must not change with what is coded along with them."""
    x = values(96, 64)
    for axis, cut in (("token", (slice(1, 2), slice(None), slice(8, 40))), ("channel", (slice(1, 2), slice(None), slice(32, 64)))):
        alone, whole = (clipped.encode(part, 2, 32, axis, fit) for part in (x[cut], x))  # type: ignore[arg-type]
        expected = decoded(whole, x, 2, 32, axis)[cut]  # type: ignore[arg-type]
        assert torch.equal(decoded(alone, x[cut], 2, 32, axis), expected)  # type: ignore[arg-type]


@each_fit
@each_dtype
@each_axis
def test_encoding_changes_no_input(axis: kivi.Axis, dtype: torch.dtype, fit: clipped.Fit) -> None:
    """Groups of float32 may be worked on where they lie."""
    x = values(8, 8, dtype)
    before = x.clone()
    clipped.encode(x, 4, 8, axis, fit)
    assert torch.equal(x, before)


@each_axis
@pytest.mark.parametrize("bits", kivi.BITS)
def test_the_kernel_decodes_what_the_reference_does(kernel: Callable[..., Any], bits: int, axis: kivi.Axis) -> None:
    """Products of at most 15 times a scale, and a sum: one rounding more or less where the device fuses them."""
    x = values(63, 40)
    parts = clipped.encode(x, bits, 32, axis, clipped.least_squares)
    found, _ = kernel("clipped", "decode", tuple(parts), tuple(x.shape), bits, 32, axis, torch.float32)
    assert ((found - decoded(parts, x, bits, 32, axis)).abs() <= 2.0**-22 * x.abs().max()).all()


@pytest.mark.parametrize(("name", "shape"), [("scale", (2, 2, 7)), ("zero", (2, 1, 8)), ("ends", (2, 2, 8))])
def test_parts_of_another_shape_are_refused(name: str, shape: tuple[int, ...]) -> None:
    """Broadcasting would spread them."""
    x = torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(3))
    parts = clipped.encode(x, 4, 32, "token", clipped.whole_range)
    wrong = parts._replace(**{name: torch.zeros(shape, dtype=getattr(parts, name).dtype)})
    with pytest.raises(ValueError, match=f"{name}: expected"):
        clipped.decode(wrong, x.shape, 4, 32, "token", torch.float32)
