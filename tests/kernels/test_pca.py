"""The arithmetic of principal components: blocks of bits, gains, and tokens that stand alone."""

from __future__ import annotations

import pytest
import torch

from kvkernels import pca

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
