"""The reference of kvquant: codes, outliers and ranges by their definition, on sizes that fill nothing."""

from __future__ import annotations

import pytest
import torch

from kvkernels import kvquant

LEVELS = torch.tensor([[-0.9, -0.2, 0.3, 0.8], [-1.0, -0.5, 0.5, 1.0]])


def draw(n_tokens: int, dim: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return (2, 3, T, D) normal values."""
    return torch.randn(2, 3, n_tokens, dim, generator=torch.Generator().manual_seed(n_tokens + dim)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n_tokens", [1, 63, 257])
def test_keys_are_the_nearest_levels_of_their_channels_and_the_farthest_are_kept(n_tokens: int, dtype: torch.dtype) -> None:
    """By distances to every level, and the channels by their numbers."""
    x, rng = draw(n_tokens, 7, dtype), torch.Generator().manual_seed(1)
    middle, half = torch.randn(2, 21, generator=rng), 0.5 + torch.rand(2, 21, generator=rng)
    parts = kvquant.encode_keys(x, middle, half, LEVELS, 2)
    back = kvquant.decode(*parts, middle[:, None], half[:, None], LEVELS, 3, 21, dtype)
    flat = x.float().transpose(1, 2).flatten(2)  # (2, T, 21)
    y = (flat - middle[:, None]) / half[:, None]
    nearest = (y[..., None] - LEVELS[:, None, None]).abs().argmin(-1)
    expected = LEVELS[:, None, None].expand(*y.shape, 4).gather(-1, nearest[..., None])[..., 0] * half[:, None] + middle[:, None]
    outliers = y.abs().topk(2, -1).indices
    expected = expected.to(dtype).scatter(2, outliers, x.transpose(1, 2).flatten(2).gather(2, outliers))
    assert torch.equal(back.transpose(1, 2).flatten(2), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n_tokens", "n_kept"), [(1, 0), (63, 1), (257, 3)])
def test_values_are_off_by_half_the_widest_gap_of_levels_at_most(n_tokens: int, n_kept: int, dtype: torch.dtype) -> None:
    """Gaps of at most 1 and ends that are at most 0.2 off, in halves of the range; roundings of both and of the result come on top."""
    x = draw(n_tokens, 5, dtype)
    *parts, middle, half = kvquant.encode_values(x, LEVELS, n_kept)
    back = kvquant.decode(*parts, middle, half, LEVELS, 3, 15, dtype)
    slack = 4 * torch.finfo(dtype).eps * x.float().abs().amax()  # three roundings of values up to twice the largest
    assert ((back.float() - x.float()).abs() <= 0.5 * half.float()[:, None] + slack).all()


def test_equal_values_come_back() -> None:
    """A range of no width has no level but its middle."""
    x = torch.full((2, 3, 4, 5), 0.375)
    *parts, middle, half = kvquant.encode_values(x, LEVELS, 1)
    assert torch.equal(kvquant.decode(*parts, middle, half, LEVELS, 3, 15, torch.float32), x)


def test_an_outlier_beyond_the_last_channel_is_in_the_last() -> None:
    """Numbers come from stored bytes."""
    *parts, middle, half = kvquant.encode_values(draw(4, 5), LEVELS, 2)
    codes, where, kept = parts
    back = kvquant.decode(codes, torch.full_like(where, 255), torch.full_like(kept, 9.0), middle, half, LEVELS, 3, 15, torch.float32)
    assert (back[:, 2, :, 4] == 9.0).all()


def test_parts_that_do_not_belong_together_are_refused() -> None:
    *parts, middle, half = kvquant.encode_values(draw(4, 5), LEVELS, 2)
    with pytest.raises(ValueError, match="codes: expected"):
        kvquant.decode(*parts, middle, half, LEVELS, 3, 24, torch.float32)


def test_more_channels_than_a_number_has_bits_for_are_refused() -> None:
    with pytest.raises(ValueError, match="65538 channels"):
        kvquant.encode_values(torch.zeros(2, 2, 1, 32_769), LEVELS, 1)
