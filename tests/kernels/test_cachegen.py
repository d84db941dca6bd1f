"""CacheGen's arithmetic: levels per token, and differences to the first of ten tokens."""

from __future__ import annotations

import pytest
import torch

from kvkernels import cachegen

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPS = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def values(n_tokens: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Return x (T, 24)."""
    return torch.randn(n_tokens, 24, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("half", [3, 7, 15, 31])
@pytest.mark.parametrize("n_tokens", [1, 33])
def test_a_value_is_off_by_half_a_level(n_tokens: int, half: int, dtype: torch.dtype) -> None:
    """And by the last cast, and by what three roundings in float32 add: 2**-20 of a level is plenty for 31 of them."""
    x = values(n_tokens, dtype)
    symbols, scale = cachegen.symbols_of(x, half)
    assert int(symbols.max()) <= 2 * half
    back = cachegen.values_of(symbols, scale, half, dtype)
    step = scale.float()[:, None] / half
    assert ((back.float() - x.float()).abs() <= step * (0.5 + 2.0**-18) + EPS[dtype] * x.float().abs().amax()).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_tokens", [1, 2, 10, 11, 33])
def test_differences_are_off_by_half_a_level_of_their_own(n_tokens: int, dtype: torch.dtype) -> None:
    x = values(1, dtype) + 0.1 * values(n_tokens, dtype, seed=1)
    anchors, symbols, scale = cachegen.anchored_symbols_of(x, 15)
    assert (len(anchors), len(symbols)) == (-(-n_tokens // 10), n_tokens - -(-n_tokens // 10))
    back = cachegen.anchored_values_of(anchors, symbols, scale, 15, dtype)
    levels = torch.where(cachegen.is_anchor(n_tokens), 127, 15)
    step = (scale.float() / levels)[:, None]
    assert ((back.float() - x.float()).abs() <= step * (0.5 + 2.0**-18) + EPS[dtype] * 2 * x.float().abs().amax()).all()


def test_the_largest_value_comes_back_exactly_and_zero_is_zero() -> None:
    x = torch.tensor([[3.0, 0.0, -0.3], [0.0, 0.0, 0.0]])
    back = cachegen.values_of(*cachegen.symbols_of(x, 15), 15, torch.float32)
    assert back[0, :2].tolist() == [3.0, 0.0]
    assert back[1].tolist() == [0.0, 0.0, 0.0]


def test_the_largest_float16_values_stay_finite() -> None:
    """Their differences are beyond the type."""
    x = torch.full((12, 8), 65504.0).half()
    x[::2] *= -1
    back = cachegen.anchored_values_of(*cachegen.anchored_symbols_of(x, 15), 15, torch.float16)
    assert torch.isfinite(back).all()


def test_encoding_changes_no_input() -> None:
    x = values(12, torch.float32)
    before = x.clone()
    cachegen.anchored_symbols_of(x, 15)
    cachegen.symbols_of(x, 15)
    assert torch.equal(x, before)
