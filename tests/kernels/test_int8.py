"""Int8: the kernel equals its reference, and both keep the bound of rounding to 255 levels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kvkernels import int8

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZES = [(1, 32), (63, 64), (257, 80), (257, 128)]


def values(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Draw normal values with one channel that is 30 times larger."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    x[..., 3] *= 30
    return x.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_tokens", "n_channels"), SIZES)
def test_encode_kernel_equals_the_reference_bit_for_bit(
    kernel: Callable[..., Any], n_tokens: int, n_channels: int, dtype: torch.dtype
) -> None:
    """Both divide with correct rounding and round half to even, so nothing may differ."""
    x = values(2, n_tokens, n_channels, dtype=dtype)
    (codes, scale), _ = kernel("int8", "encode", x)
    expected_codes, expected_scale = int8.reference_encode(x)
    assert torch.equal(codes, expected_codes)
    assert torch.equal(scale, expected_scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_tokens", "n_channels"), SIZES)
def test_decode_kernel_equals_the_reference_to_one_unit_in_the_last_place(
    kernel: Callable[..., Any], n_tokens: int, n_channels: int, dtype: torch.dtype
) -> None:
    """One float32 product, rounded once; the interpreter's cast to bfloat16 may round the other way, by eps * |x'| at most."""
    codes, scale = int8.reference_encode(values(2, n_tokens, n_channels, dtype=dtype))
    x, _ = kernel("int8", "decode", codes, scale, dtype)
    expected = int8.reference_decode(codes, scale, dtype)
    assert x.dtype == dtype
    assert ((x.float() - expected.float()).abs() <= torch.finfo(dtype).eps * expected.float().abs()).all()


@pytest.mark.parametrize("n_tokens", [1, 63, 257, 1500])
@pytest.mark.parametrize("magnitude", [1e-6, 1.0, 1e30])
def test_error_is_at_most_half_a_step(n_tokens: int, magnitude: float) -> None:
    """Rounding to the nearest of 255 levels moves an element by at most max|x| / 254."""
    x = values(3, n_tokens, 128, dtype=torch.float32) * magnitude
    back = int8.decode(*int8.encode(x), torch.float32)
    bound = x.abs().amax(-1, keepdim=True) / 254
    # Scale, quotient and product are each off by 2**-24 of at most 127 steps, and a step is two bounds: 6 * 127 * 2**-24 < 1e-4.
    assert ((back - x).abs() <= bound * (1 + 1e-4)).all()


def test_a_tie_rounds_to_the_even_code() -> None:
    """Scale is 1 here, so halves are ties."""
    codes, _ = int8.encode(torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -127.0]]))
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2, -2, -127]]


def test_zeros_decode_to_zeros() -> None:
    """The smallest scale keeps 0 / 0 away."""
    codes, scale = int8.encode(torch.zeros(2, 5, 32))
    assert (int8.decode(codes, scale, torch.float32) == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_values_stay_finite(dtype: torch.dtype) -> None:
    """127 * (max / 127) may round up in float32, and must not reach infinity in the dtype of x."""
    x = torch.full((1, 1, 32), min(2.0**127, torch.finfo(dtype).max), dtype=dtype)
    back = int8.decode(*int8.encode(x), dtype)
    assert ((back.float() - x.float()).abs() <= torch.finfo(dtype).eps * x.float()).all()


def test_a_nan_stays_in_its_own_token() -> None:
    """Refusing it is the caller's check; here it must not spread."""
    x = values(1, 3, 32, dtype=torch.float32)
    clean = int8.encode(x)[0]
    x[0, 1, 5] = float("nan")
    codes, scale = int8.encode(x)
    assert torch.equal(codes[0, [0, 2]], clean[0, [0, 2]])
    assert scale.isnan().flatten().tolist() == [False, True, False]


@pytest.mark.parametrize("shape", [(2, 0, 64), (0, 5, 64), (2, 3, 0, 64)])
def test_no_tokens_give_empty_outputs(kernel: Callable[..., Any], shape: tuple[int, ...]) -> None:
    """The boundary below one token."""
    (codes, scale), _ = kernel("int8", "encode", torch.empty(shape))
    assert (codes.shape, scale.shape) == (shape, (*shape[:-1], 1))
    assert int8.decode(codes, scale, torch.float32).shape == shape


def test_leading_axes_and_strides_do_not_matter(kernel: Callable[..., Any]) -> None:
    """The pipeline passes (L, H, T, D), often a permuted view."""
    x = values(2, 9, 3, 64, dtype=torch.bfloat16).transpose(1, 2)
    expected = int8.reference_encode(x.contiguous())
    for codes, scale in (kernel("int8", "encode", x)[0], int8.encode(x)):
        assert torch.equal(codes, expected[0])
        assert torch.equal(scale, expected[1])


def test_decode_refuses_scales_of_another_shape() -> None:
    """A kernel does not check bounds, and these shapes come from stored bytes."""
    codes, scale = int8.encode(values(2, 4, 32, dtype=torch.float32))
    with pytest.raises(ValueError, match=r"scale: expected torch.float32 \(2, 4, 1\), got torch.float32 \(2, 3, 1\)"):
        int8.decode(codes, scale[:, :3], torch.float32)


@pytest.mark.parametrize("x", [torch.zeros(4, 32, dtype=torch.float64), torch.zeros(4, 32, dtype=torch.int8)])
def test_encode_refuses_other_dtypes(x: torch.Tensor) -> None:
    """A silent cast would hide a pipeline that passes the wrong tensor."""
    with pytest.raises(TypeError, match=r"cast to one of torch.float32, torch.float16, torch.bfloat16"):
        int8.encode(x)
