"""FP8: the kernel equals its reference, values on the grid come back exactly, and rounding keeps its bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kvkernels import backend, fp8

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def values(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Draw normal values with one channel that is 30 times larger and one whose values become subnormal."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    x[..., 3] *= 30
    x[..., 5] *= 1e-3
    return x.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_tokens", "n_channels"), [(1, 32), (63, 64), (257, 80)])
def test_kernels_equal_the_reference_bit_for_bit(kernel: Callable[..., Any], n_tokens: int, n_channels: int, dtype: torch.dtype) -> None:
    """Scales are powers of two, so only the rounding to E4M3 rounds, and its values are exact in every dtype."""
    x = values(2, n_tokens, n_channels, dtype=dtype)
    expected = fp8.reference_encode(x)
    found, _ = kernel("fp8", "encode", x)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    back, _ = kernel("fp8", "decode", *expected, dtype)
    assert back.dtype == dtype
    assert torch.equal(back, fp8.reference_decode(*expected, dtype))


def every_code() -> torch.Tensor:
    """Return the 254 finite E4M3 values, as float32 (1, 1, 254)."""
    codes = torch.arange(256, dtype=torch.uint8)
    return codes[codes & 127 != 127].view(torch.float8_e4m3fn).float().view(1, 1, -1)


def test_the_kernel_knows_every_code(kernel: Callable[..., Any]) -> None:
    """NaN included: hostile bytes decode alike everywhere."""
    codes, scale = torch.arange(256, dtype=torch.uint8).view(1, 1, 256), torch.tensor([2.0])
    back, _ = kernel("fp8", "decode", codes, scale, torch.float32)
    assert torch.equal(back.nan_to_num(nan=-1.0), fp8.reference_decode(codes, scale, torch.float32).nan_to_num(nan=-1.0))


def test_ties_round_to_the_even_code_in_both(kernel: Callable[..., Any]) -> None:
    """Halfway between neighbours, subnormal ones included."""
    grid = every_code().flatten().sort().values
    x = torch.cat((grid, (grid[:-1] + grid[1:]) / 2)).view(1, 1, -1)
    (codes, _), _ = kernel("fp8", "encode", x)
    assert torch.equal(codes, x.to(torch.float8_e4m3fn).view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exponent", [-6, 0, 3])
@pytest.mark.parametrize("largest", [448.0, 3.5, 2.0**-6])
def test_a_float8_cache_passes_through_bit_for_bit(dtype: torch.dtype, exponent: int, largest: float) -> None:
    """Every value of the grid up to some largest, at any power-of-two scale: what is on the grid of a coarser scale is on a finer one."""
    x = every_code()
    x = (x[x.abs() <= largest] * 2.0**exponent).to(dtype).view(1, 1, -1)
    back = fp8.decode(*fp8.encode(x), dtype)
    assert torch.equal(back.view(torch.uint8), x.view(torch.uint8))


@pytest.mark.parametrize("magnitude", [1e-30, 1.0, 1e30])
def test_an_element_is_off_by_at_most_a_sixteenth(magnitude: float) -> None:
    """Three bits of fraction; below 2**-6 scales half a subnormal step."""
    x = values(2, 33, 64, dtype=torch.float32) * magnitude
    codes, scale = fp8.encode(x)
    off = (fp8.decode(codes, scale, torch.float32) - x).abs()
    assert (off <= torch.maximum(x.abs() / 16, scale[..., None, None] * 2.0**-10)).all()


@pytest.mark.parametrize("shape", [(2, 0, 64), (0, 5, 64)])
def test_no_tokens_give_empty_codes(kernel: Callable[..., Any], shape: tuple[int, ...]) -> None:
    """The boundary below one token."""
    for codes, scale in (kernel("fp8", "encode", torch.empty(shape))[0], fp8.encode(torch.empty(shape))):
        assert (codes.shape, scale.shape) == (shape, shape[:-2])
        assert fp8.decode(codes, scale, torch.float32).shape == shape


def test_strides_and_slabs_do_not_show(monkeypatch: pytest.MonkeyPatch, kernel: Callable[..., Any]) -> None:
    """The pipeline passes (L, H, T, D), often a permuted view."""
    x = values(2, 9, 3, 64, dtype=torch.bfloat16).transpose(1, 2)
    expected = fp8.reference_encode(x.contiguous())
    found, _ = kernel("fp8", "encode", x)
    monkeypatch.setattr(backend, "SLAB", 100)
    for codes, scale in (found, fp8.encode(x)):
        assert torch.equal(codes, expected[0])
        assert torch.equal(scale, expected[1])


def test_decode_refuses_scales_of_another_shape() -> None:
    """A kernel does not check bounds, and these shapes come from stored bytes."""
    codes, scale = fp8.encode(values(2, 4, 32, dtype=torch.float32))
    with pytest.raises(ValueError, match=r"scale: expected torch.float32 \(2,\), got torch.float32 \(1,\)"):
        fp8.decode(codes, scale[:1], torch.float32)
