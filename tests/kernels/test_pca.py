"""The arithmetic of principal components: blocks of bits, gains, and tokens that stand alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kvkernels import pca
from kvkernels.packing import unpack

WIDTHS = (8, 5, 3, 2, 2, 1)
HEADS, DIM = 3, 20


def values(n_tokens: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return (H, T, D) normal values."""
    return torch.randn(HEADS, n_tokens, DIM, generator=torch.Generator().manual_seed(0)).to(dtype)


def axes(widths: tuple[int, ...] = WIDTHS, step: float = 0.05) -> pca.Axes:
    """Return axes at right angles for 60 channels."""
    draw = torch.Generator().manual_seed(1)
    channels, rank = HEADS * DIM, pca.BLOCK * len(widths)
    basis = torch.linalg.qr(torch.randn(channels, channels, generator=draw))[0][:, :rank].half()
    weight, mean = 0.5 + torch.rand(channels, generator=draw), 0.1 * torch.randn(channels, generator=draw)
    steps = step * 2.0 ** torch.tensor([8 - width for width in widths]).repeat_interleave(pca.BLOCK)
    return pca.Axes(weight, mean, basis, steps, widths)


def projected(x: torch.Tensor, own: pca.Axes) -> torch.Tensor:
    """Return components (T, R)."""
    return (x.transpose(0, 1).flatten(1).float() * own.weight - own.mean) @ own.basis.float()


@pytest.mark.parametrize("n_tokens", [1, 63, 127, 128, 129])
def test_a_component_is_off_by_half_its_step(n_tokens: int) -> None:
    """Where it lies within its range; float16 axes are at right angles to 2**-11 times the length of a token, here at most 12."""
    x, own = values(n_tokens), axes()
    back = pca.decode(pca.encode(x, own), own, None, HEADS, torch.float32)
    reach = own.step * 2.0 ** (torch.tensor(own.widths).repeat_interleave(pca.BLOCK) - 1)
    z = projected(x, own)
    off = (projected(back, own) - z.clamp(-reach, reach)).abs()
    assert (off <= own.step / 2 + 2.0**-11 * 12).all()


def codes_of(data: torch.Tensor, own: pca.Axes) -> torch.Tensor:
    """Return the codes (T, R) in bytes (T, B)."""
    ends = torch.tensor(own.widths).cumsum(0).tolist()
    parts = zip(ends, own.widths, strict=True)
    return torch.cat([unpack(data[:, end - width : end], pca.BLOCK, 1 << width).int() for end, width in parts], 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n_tokens", [1, 33])
@pytest.mark.parametrize("widths", [WIDTHS, (6, 4, 4, 3, 2, 1, 1), (2,) * 7])
def test_encode_kernel_equals_the_reference_but_for_values_next_to_a_border(
    kernel: Callable[..., Any], widths: tuple[int, ...], n_tokens: int, dtype: torch.dtype
) -> None:
    """Sums are taken in another order: 64 terms of at most 4 in float32, and a border is crossed by what lies within 2**-12 of a step."""
    x, own = values(n_tokens, dtype), axes(widths)
    gain = pca.gains(x, own.weight)
    for given in (None, gain):
        data, _ = kernel("pca", "encode", x, tuple(own), given)
        expected = pca.reference_encode(x, own, given)
        off = (codes_of(data, own) - codes_of(expected, own)).abs()
        y = x.transpose(0, 1).flatten(1).float() * own.weight
        y = y if given is None else y / pca.gain_values(given.T).repeat_interleave(DIM, 1)
        steps = (y - own.mean) @ own.basis.float() / own.step
        assert off.max() <= 1
        assert ((steps - steps.round()).abs()[off > 0] < 2.0**-12).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n_tokens", [1, 33])
def test_decode_kernel_equals_the_reference(kernel: Callable[..., Any], n_tokens: int, dtype: torch.dtype) -> None:
    """To the rounding of sums of 48 products, and of the cast."""
    own, draw = axes(), torch.Generator().manual_seed(2)
    data = torch.randint(0, 256, (n_tokens, own.nbytes), generator=draw, dtype=torch.uint8)
    for gain in (None, torch.randint(120, 140, (HEADS, n_tokens), generator=draw, dtype=torch.uint8)):
        back, _ = kernel("pca", "decode", data, tuple(own), gain, HEADS, dtype)
        expected = pca.reference_decode(data, own, gain, HEADS, dtype)
        torch.testing.assert_close(back, expected, rtol=2 * torch.finfo(dtype).eps, atol=2.0**-17 * float(expected.abs().max()))


def test_codes_of_a_token_do_not_depend_on_those_behind_it() -> None:
    x, own = values(129), axes()
    whole = pca.encode(x, own)
    for n_tokens in (1, 5, 127, 128):
        assert torch.equal(pca.encode(x[:, :n_tokens], own), whole[:n_tokens])


def test_blocks_take_a_byte_per_bit() -> None:
    assert pca.encode(values(7), axes()).shape == (7, sum(WIDTHS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_comes_back_has_the_type_asked_for_and_is_finite(dtype: torch.dtype) -> None:
    x, own = values(5, dtype) * torch.finfo(dtype).max / 8, axes()
    gain = pca.gains(x, own.weight)
    back = pca.decode(pca.encode(x, own, gain), own, gain, HEADS, dtype)
    assert back.dtype == dtype
    assert back.isfinite().all()


def test_a_gain_is_the_length_rounded_down_to_an_eighth_of_its_octave() -> None:
    """4.0 has 127 + 2 as exponent; 4.6 lies between 4.5 and 5; beyond both ends of the range it is the end."""
    x = torch.tensor([4.0, 4.6, 0.0, 2.0**-20, 1e9]).view(1, 5, 1).expand(1, 5, 4)
    gain = pca.gains(x, torch.ones(4))
    assert pca.gain_values(gain).tolist() == [[4.0, 4.5, 2.0**-16, 2.0**-16, 2.0**16 * (2 - 2.0**-3) / 2]]
    assert gain[0, 0] == (2 + 16) * 8


def test_axes_that_do_not_fit_are_refused() -> None:
    own = axes()
    with pytest.raises(ValueError, match="widths must fall"):
        pca.encode(values(3), own._replace(widths=(1, 2)))
    with pytest.raises(ValueError, match=r"basis: expected torch\.float16 \(60, 40\)"):
        pca.encode(values(3), own._replace(widths=WIDTHS[:5]))
    with pytest.raises(ValueError, match=r"codes: expected torch\.uint8 \(3, 21\)"):
        pca.decode(torch.zeros(3, 20, dtype=torch.uint8), own, None, HEADS, torch.float32)


def test_a_side_without_bits_comes_back_as_its_mean() -> None:
    own = axes()._replace(basis=torch.zeros(60, 0, dtype=torch.float16), step=torch.zeros(0), widths=())
    back = pca.decode(pca.encode(values(3), own), own, None, HEADS, torch.float32)
    assert torch.equal(back, (own.mean / own.weight).view(HEADS, 1, DIM).expand(-1, 3, -1))
