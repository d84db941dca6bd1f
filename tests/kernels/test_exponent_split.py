"""Exponent split: every bit pattern comes back, and the planes are laid out as described."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from kvkernels import exponent_split

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZES = [(1, 32), (63, 64), (257, 80), (257, 128)]
# Zeros, infinities, quiet and signalling NaNs with payloads, subnormals, the largest and the smallest normals; of both signs.
FLOAT32_PATTERNS = [0x00000000, 0x7F800000, 0x7FC00000, 0x7FC12345, 0x7F800001, 0x7FFFFFFF, 0x00000001, 0x007FFFFF, 0x7F7FFFFF, 0x00800000]


def bits(x: torch.Tensor) -> torch.Tensor:
    """Read floats as integers of their size."""
    return x.view(exponent_split.WORD[x.itemsize])


def random_patterns(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Draw uniform bit patterns, NaNs and infinities included."""
    word = exponent_split.WORD[dtype.itemsize]
    info = torch.iinfo(word)
    return torch.randint(info.min, info.max + 1, shape, dtype=word, generator=torch.Generator().manual_seed(0)).view(dtype)


def all_patterns(dtype: torch.dtype) -> torch.Tensor:
    """Return every pattern of a 16-bit dtype, or the named ones of float32 in both signs, as (1, T, 2)."""
    if dtype.itemsize == 2:
        return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(1, -1, 2)
    words = torch.tensor(FLOAT32_PATTERNS + [pattern - 2**31 for pattern in FLOAT32_PATTERNS])
    return words.to(torch.int32).view(dtype).view(1, -1, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_tokens", "n_channels"), SIZES)
def test_kernels_equal_the_references(kernel: Callable[..., Any], n_tokens: int, n_channels: int, dtype: torch.dtype) -> None:
    """Integers only, so the tolerance is zero."""
    x = random_patterns(2, n_tokens, n_channels, dtype=dtype)
    (exponent, rest), _ = kernel("exponent_split", "encode", x)
    expected = exponent_split.reference_encode(x)
    assert torch.equal(exponent, expected[0])
    assert torch.equal(rest, expected[1])
    assert torch.equal(bits(kernel("exponent_split", "decode", exponent, rest, dtype)[0]), bits(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_pattern_comes_back(dtype: torch.dtype) -> None:
    """NaN payloads, infinities, -0 and subnormals; all 65,536 patterns of the 16-bit dtypes."""
    x = all_patterns(dtype)
    assert torch.equal(bits(exponent_split.decode(*exponent_split.encode(x), dtype)), bits(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_pattern_comes_back_from_the_kernels(kernel: Callable[..., Any], dtype: torch.dtype) -> None:
    """The same, where a float load would quieten a NaN."""
    x = all_patterns(dtype)
    exponent, rest = kernel("exponent_split", "encode", x)[0]
    assert torch.equal(bits(kernel("exponent_split", "decode", exponent, rest, dtype)[0]), bits(x))


@pytest.mark.parametrize(
    ("dtype", "pattern", "exponent", "rest"),
    [
        (torch.bfloat16, 0xBFC1, 0x7F, [0xC1]),  # 1 01111111 1000001
        (torch.float16, 0xBE01, 0x7C, [0x81]),  # 1 01111 1000000001
        (torch.float32, 0xBFC1A53C, 0x7F, [0xC1, 0xA5, 0x3C]),
    ],
)
def test_planes_hold_the_documented_bits(dtype: torch.dtype, pattern: int, exponent: int, rest: list[int]) -> None:
    """The layout is part of the stored format: golden values."""
    bits_in_word = 8 * dtype.itemsize
    word = torch.tensor([[pattern - 2**bits_in_word]], dtype=exponent_split.WORD[dtype.itemsize])
    planes = exponent_split.encode(word.view(dtype))
    assert (planes[0].item(), planes[1].flatten().tolist()) == (exponent, rest)


def test_the_exponent_plane_is_what_compresses() -> None:
    """Normal bfloat16 values carry under 3 bits in the exponent and about 8 in the rest; interleaved, zlib finds less."""
    x = torch.randn((8, 256, 64), generator=torch.Generator().manual_seed(0)).bfloat16()
    exponent, rest = exponent_split.encode(x)
    sizes = [len(zlib.compress(plane.numpy().tobytes(), 6)) for plane in (exponent, rest, bits(x))]
    assert sizes[0] < 0.45 * exponent.nbytes
    assert sizes[0] + sizes[1] < 0.92 * sizes[2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 0, 64), (0, 5, 64)])
def test_no_tokens_give_empty_planes(kernel: Callable[..., Any], shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """The boundary below one token."""
    for exponent, rest in (
        kernel("exponent_split", "encode", torch.empty(shape, dtype=dtype))[0],
        exponent_split.encode(torch.empty(shape, dtype=dtype)),
    ):
        assert (exponent.shape, rest.shape) == (shape, (dtype.itemsize - 1, *shape))
        assert exponent_split.decode(exponent, rest, dtype).shape == shape


def test_leading_axes_and_strides_do_not_matter(kernel: Callable[..., Any]) -> None:
    """The pipeline passes (L, H, T, D), often a permuted view, and planes that were cut from a larger buffer."""
    x = random_patterns(2, 9, 3, 64, dtype=torch.float32).transpose(1, 2)
    for exponent, rest in (kernel("exponent_split", "encode", x)[0], exponent_split.encode(x)):
        wide = torch.stack([rest, rest], -1)[..., 0]
        assert torch.equal(bits(exponent_split.decode(exponent, wide, x.dtype)), bits(x.contiguous()))


def test_more_than_one_slab_comes_back() -> None:
    """The reference works in slabs of 2**17 values; the last one is short."""
    x = random_patterns(3, 700, 100, dtype=torch.bfloat16)
    assert torch.equal(bits(exponent_split.decode(*exponent_split.encode(x), x.dtype)), bits(x))


def test_decode_refuses_planes_of_another_dtype() -> None:
    """Two planes are no float32: a kernel would read past the end."""
    exponent, rest = exponent_split.encode(torch.zeros(2, 4, 32, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"rest: expected torch.uint8 \(3, 2, 4, 32\), got torch.uint8 \(1, 2, 4, 32\)"):
        exponent_split.decode(exponent, rest, torch.float32)
