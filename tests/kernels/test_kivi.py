"""KIVI: the kernel equals its reference, bytes are packed as described, and no element moves by more than half its scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvkernels import backend, kivi

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
AXES: list[kivi.Axis] = ["token", "channel"]
SIZES = [(1, 32), (63, 64), (257, 80), (257, 128)]


def values(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Draw normal values with one channel that is 30 times larger and off centre."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    x[..., 3] = x[..., 3] * 30 + 100
    return x.to(dtype)


def line_values(x: torch.Tensor, axis: kivi.Axis) -> torch.Tensor:
    """Put the grouped axis last, in float64."""
    return (x.mT if axis == "token" else x).double()


def assert_within_half_a_scale(x: torch.Tensor, scale: torch.Tensor, back: torch.Tensor, group: int, axis: kivi.Axis) -> None:
    """Check |x' - x| <= scale / 2 for float32 x', whatever the dtype of x.

    In exact arithmetic the bound holds with equality at a tie. Float32 adds: the subtraction and the quotient are each off by 2**-24 of at
    most 16 scales (2 * 16 * 2**-24 scales, which can turn a near tie), product and sum by 2**-24 of at most max|x| + 16 scales each.
    """
    line, step = line_values(x, axis), line_values(scale, axis)
    step = step.repeat_interleave(group, -1)[..., : line.shape[-1]]
    rounding = 2**-19 * step + 2**-23 * (line.abs().amax(-1, keepdim=True) + 16 * step)
    assert ((line_values(back, axis) - line).abs() <= step / 2 + rounding).all()


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("bits", kivi.BITS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_tokens", "n_channels"), SIZES)
def test_encode_kernel_equals_the_reference_bit_for_bit(
    kernel: Callable[..., Any], n_tokens: int, n_channels: int, dtype: torch.dtype, bits: int, axis: kivi.Axis
) -> None:
    """Every operation rounds correctly in both, and the scale is cut toward zero whichever way the cast rounds."""
    x = values(2, n_tokens, n_channels, dtype=dtype)
    parts, _ = kernel("kivi", "encode", x, bits, 32, axis)
    for part, expected in zip(parts, kivi.reference_encode(x, bits, 32, axis), strict=True):
        assert torch.equal(part, expected)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("bits", kivi.BITS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_tokens", "n_channels"), SIZES)
def test_decode_kernel_equals_the_reference(
    kernel: Callable[..., Any], n_tokens: int, n_channels: int, dtype: torch.dtype, bits: int, axis: kivi.Axis
) -> None:
    """A device may fuse the multiply-add, which saves one rounding of a product below max|x| - min|x|: 2**-24 * 2 * max|x|. The cast to
    bfloat16 rounds by eps * |x'| at most, and not the same way in the interpreter."""
    x = values(2, n_tokens, n_channels, dtype=dtype)
    parts = kivi.reference_encode(x, bits, 32, axis)
    back, _ = kernel("kivi", "decode", *parts, tuple(x.shape), bits, 32, axis, dtype)
    expected = kivi.reference_decode(*parts, x.shape, bits, 32, axis, dtype).float()
    assert back.dtype == dtype
    assert ((back.float() - expected).abs() <= torch.finfo(dtype).eps * expected.abs() + 2**-23 * x.float().abs().max()).all()


@pytest.mark.parametrize("group", kivi.GROUPS)
def test_every_group_size_runs_in_the_kernel(kernel: Callable[..., Any], group: int) -> None:
    """The tile is 4096 values for each of them."""
    x = values(1, 300, 32, dtype=torch.bfloat16)
    parts, _ = kernel("kivi", "encode", x, 2, group, "token")
    for part, expected in zip(parts, kivi.reference_encode(x, 2, group, "token"), strict=True):
        assert torch.equal(part, expected)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("bits", kivi.BITS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_tokens", [1, 31, 32, 33, 257])
def test_error_is_at_most_half_the_stored_scale(n_tokens: int, dtype: torch.dtype, bits: int, axis: kivi.Axis) -> None:
    """Codes are computed against what is stored, so the bound is about the stored scale."""
    x = values(2, n_tokens, 80, dtype=dtype)
    codes, scale, zero = kivi.encode(x, bits, 32, axis)
    assert_within_half_a_scale(x, scale, kivi.decode(codes, scale, zero, x.shape, bits, 32, axis, torch.float32), 32, axis)


@settings(max_examples=60, derandomize=True)
@given(
    st.integers(1, 40), st.integers(1, 20), st.sampled_from(DTYPES), st.sampled_from(kivi.BITS), st.sampled_from(AXES),
    st.floats(-24, 38), st.floats(-8, 8), st.integers(0, 2**31),
)  # fmt: skip
def test_error_bound_holds_at_any_magnitude_and_offset(
    n_tokens: int, n_channels: int, dtype: torch.dtype, bits: int, axis: kivi.Axis, decade: float, offset: float, seed: int
) -> None:
    """From float16 subnormals to near the largest float32: scales neither vanish nor overflow, and decoding stays finite."""
    spread = torch.randn(2, n_tokens, n_channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + offset
    limit = min(torch.finfo(dtype).max, 2.0**127 - 2.0**119)  # the largest bfloat16 below 2**127
    x = (spread * 10**decade).clamp(-limit, limit).to(dtype)
    codes, scale, zero = kivi.encode(x, bits, 8, axis)
    assert scale.isfinite().all()
    assert_within_half_a_scale(x, scale, kivi.decode(codes, scale, zero, x.shape, bits, 8, axis, torch.float32), 8, axis)
    assert kivi.decode(codes, scale, zero, x.shape, bits, 8, axis, dtype).isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", AXES)
def test_decoded_values_stay_inside_their_group(axis: kivi.Axis, dtype: torch.dtype) -> None:
    """The scale is rounded toward zero; up, the largest float16 would decode to infinity."""
    x = values(2, 64, 64, dtype=dtype)
    limit = min(torch.finfo(dtype).max, 2.0**126)
    x[:, ::7] = limit
    x[:, ::5] = -limit
    codes, scale, zero = kivi.encode(x, 2, 32, axis)
    back = kivi.decode(codes, scale, zero, x.shape, 2, 32, axis, dtype)
    low, high = (line_values(t, axis).unflatten(-1, (-1, 32)) for t in (x, back))
    slack = 2.0**-23 * limit  # product and sum, float32
    assert (high.amax(-1) <= low.amax(-1) + slack).all()
    assert (high.amin(-1) >= low.amin(-1) - slack).all()


@pytest.mark.parametrize("value", [0.0, -3.0, 5e-7, 60000.0])
@pytest.mark.parametrize("axis", AXES)
def test_equal_values_come_back_exactly(axis: kivi.Axis, value: float) -> None:
    """The range is zero, the scale is the floor, and the stored minimum is the value."""
    x = torch.full((2, 40, 40), value, dtype=torch.float16)
    codes, scale, zero = kivi.encode(x, 2, 32, axis)
    assert (scale == kivi.SCALE_FLOOR).all()
    assert torch.equal(kivi.decode(codes, scale, zero, x.shape, 2, 32, axis, x.dtype), x)


@pytest.mark.parametrize("n_units", [4, 29, 254, 494, 1000])
def test_the_narrowest_float16_groups_keep_the_bound(n_units: int) -> None:
    """Without the floor, a step of 29 / 15 subnormal units would be stored as 1 unit, and the maximum would decode to 15 of 29."""
    x = (torch.linspace(0, n_units, 32).round() * 2.0**-24).half().view(1, 1, 32)
    codes, scale, zero = kivi.encode(x, 4, 32, "channel")
    back = kivi.decode(codes, scale, zero, x.shape, 4, 32, "channel", torch.float32)
    assert_within_half_a_scale(x, scale, back, 32, "channel")


def test_two_bit_codes_are_packed_little_endian_along_tokens() -> None:
    """Golden bytes: minimum 0, scale 1, so codes are the values; 5 tokens fill one byte and a quarter of the next."""
    x = torch.tensor([[0.0, 3.0], [1.0, 0.0], [2.0, 1.0], [3.0, 2.0], [1.0, 3.0]])  # (T, D)
    codes, scale, zero = kivi.encode(x, 2, 8, "token")
    assert codes.tolist() == [[0b11_10_01_00, 0b10_01_00_11], [0b01, 0b11]]
    assert (scale.tolist(), zero.tolist()) == ([[1.0, 1.0]], [[0.0, 0.0]])


def test_eight_codes_of_three_bits_take_three_bytes() -> None:
    """Golden bytes: 9 tokens fill three bytes and three bits of a fourth."""
    x = torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 7, 0])[:, None]  # (T, 1), step 1
    codes, *_ = kivi.encode(x, 3, 16, "token")
    assert codes.flatten().tolist() == [0b10_001_000, 0b1_100_011_0, 0b111_110_10, 0]


def test_four_bit_codes_are_packed_little_endian_along_channels() -> None:
    """Golden bytes: groups of 8 channels, the second of 3; each has its own minimum and scale."""
    x = torch.tensor([[0.0, 1, 2, 3, 4, 5, 6, 15, 10.0, 40.0, 12.0]])
    codes, scale, zero = kivi.encode(x, 4, 8, "channel")
    assert codes.tolist() == [[0x10, 0x32, 0x54, 0xF6, 0xF0, 0x01]]
    assert (scale.tolist(), zero.tolist()) == ([[1.0, 2.0]], [[0.0, 10.0]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_negative_zero_minimum_is_stored_as_plus_zero(kernel: Callable[..., Any], dtype: torch.dtype) -> None:
    """Which zero a minimum returns depends on the order of reduction; stored bytes must not."""
    x = torch.tensor([[-0.0, -0.0, 1.0, -0.0]], dtype=dtype)
    for _, _, zero in (kivi.encode(x, 2, 8, "channel"), kernel("kivi", "encode", x, 2, 8, "channel")[0]):
        assert not zero.signbit().any()


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("bits", kivi.BITS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 1, 32), (3, 2, 33, 80), (2, 64, 64), (5, 257, 1), (2, 0, 16)])
def test_nbytes_is_the_size_of_the_parts(shape: tuple[int, ...], dtype: torch.dtype, bits: int, axis: kivi.Axis) -> None:
    """Capacity is reserved by this formula before anything is encoded."""
    parts = kivi.encode(torch.zeros(shape, dtype=dtype), bits, 32, axis)
    assert sum(part.nbytes for part in parts) == kivi.nbytes(shape, bits, 32, axis, dtype)


@pytest.mark.parametrize(("bits", "group", "expected"), [(2, 32, 3.0), (2, 64, 2.5), (3, 32, 4.0), (4, 32, 5.0), (4, 64, 4.5)])
def test_bits_a_value_are_those_of_the_paper(bits: int, group: int, expected: float) -> None:
    """16-bit scale and zero: b + 32 / g."""
    assert kivi.nbytes((8, 128, 128), bits, group, "token", torch.bfloat16) * 8 / (8 * 128 * 128) == expected


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", [(2, 0, 64), (0, 5, 64)])
def test_no_tokens_give_empty_parts(kernel: Callable[..., Any], shape: tuple[int, ...], axis: kivi.Axis) -> None:
    """The boundary below one token."""
    for parts in (kernel("kivi", "encode", torch.empty(shape), 4, 32, axis)[0], kivi.encode(torch.empty(shape), 4, 32, axis)):
        assert sum(part.nbytes for part in parts) == 0
        assert kivi.decode(*parts, shape, 4, 32, axis, torch.float32).shape == shape


@pytest.mark.parametrize("axis", AXES)
def test_leading_axes_and_strides_do_not_matter(kernel: Callable[..., Any], axis: kivi.Axis) -> None:
    """The pipeline passes (L, H, T, D), often a permuted view."""
    x = values(2, 9, 3, 64, dtype=torch.bfloat16).transpose(1, 2)
    expected = kivi.reference_encode(x.contiguous(), 4, 8, axis)
    for parts in (kernel("kivi", "encode", x, 4, 8, axis)[0], kivi.encode(x, 4, 8, axis)):
        assert all(torch.equal(part, other) for part, other in zip(parts, expected, strict=True))


@pytest.mark.parametrize("axis", AXES)
def test_slabs_do_not_show(monkeypatch: pytest.MonkeyPatch, axis: kivi.Axis) -> None:
    """The reference cuts its work by size only: one slab or many, the same bytes and the same values."""
    x = values(3, 100, 80, dtype=torch.bfloat16)
    whole = kivi.reference_encode(x, 4, 16, axis)
    values_of_whole = kivi.reference_decode(*whole, x.shape, 4, 16, axis, x.dtype)
    monkeypatch.setattr(backend, "SLAB", 1000)
    cut = kivi.reference_encode(x, 4, 16, axis)
    assert all(torch.equal(part, other) for part, other in zip(cut, whole, strict=True))
    assert torch.equal(kivi.reference_decode(*cut, x.shape, 4, 16, axis, x.dtype), values_of_whole)


def test_encode_leaves_its_input_alone() -> None:
    """Float32 needs no cast, so working in place would be working in the caller's tensor."""
    x = values(2, 40, 32, dtype=torch.float32)
    before = x.clone()
    kivi.encode(x, 2, 32, "token")
    assert torch.equal(x, before)


def test_groups_along_tokens_halve_the_error_of_keys_with_outlier_channels() -> None:
    """The paper's reason for per-channel keys: a few channels are large and off centre, and a group across channels pays for them."""
    x = torch.randn(4, 256, 128, generator=torch.Generator().manual_seed(0))
    x[..., :4] = x[..., :4] * 3 + 10
    by_token, by_channel = (
        (kivi.decode(*kivi.encode(x, 2, 32, axis), x.shape, 2, 32, axis, torch.float32) - x).norm() / x.norm() for axis in AXES
    )
    assert by_token < 0.5 * by_channel


@pytest.mark.parametrize(("bits", "group", "axis"), [(5, 32, "token"), (2, 33, "token"), (2, 512, "channel"), (2, 32, "head")])
def test_unknown_grids_are_refused(bits: int, group: int, axis: Any) -> None:
    """The message lists what there is."""
    with pytest.raises(ValueError, match=r"choose bits in \(2, 3, 4\), group in \(8, 16, 32, 64, 128, 256\), token or channel"):
        kivi.encode(torch.zeros(4, 32), bits, group, axis)


@pytest.mark.parametrize("part", ["codes", "scale", "zero"])
def test_decode_refuses_parts_that_do_not_fit_the_shape(part: str) -> None:
    """A kernel does not check bounds, and these shapes come from stored bytes."""
    parts = dict(zip(("codes", "scale", "zero"), kivi.encode(torch.zeros(2, 64, 32), 2, 32, "token"), strict=True))
    parts[part] = parts[part][:, :1]
    with pytest.raises(ValueError, match=f"{part}: expected"):
        kivi.decode(**parts, shape=(2, 64, 32), bits=2, group=32, axis="token", dtype=torch.float32)
