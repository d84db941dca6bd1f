"""Rotate and scatter: the kernel equals its reference, rotates as half-split rotary embedding does, and writes its rows only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kvkernels import rotate_scatter

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZES = [(1, 32, 32), (63, 64, 64), (257, 80, 80), (257, 128, 128), (63, 80, 32), (33, 128, 126)]  # tokens, channels, rotary dimension


def tables(n_tokens: int, rotary_dim: int, start: int = 1000) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and sin (T, R) for consecutive positions, angles in float64."""
    frequency = 10000.0 ** (-torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)
    angle = torch.arange(start, start + n_tokens, dtype=torch.float64)[:, None] * frequency
    return torch.cat([angle.cos()] * 2, -1).float(), torch.cat([angle.sin()] * 2, -1).float()


def keys_and_rows(n_tokens: int, n_channels: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw keys of 2 heads, and distinct rows among 300 in no order."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, n_tokens, n_channels, generator=generator).to(dtype), torch.randperm(300, generator=generator)[:n_tokens]


def poisoned(n_channels: int, dtype: torch.dtype) -> torch.Tensor:
    """Return a cache (2, 300, D) of NaN."""
    return torch.full((2, 300, n_channels), float("nan"), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_tokens", "n_channels", "rotary_dim"), SIZES)
def test_kernel_equals_the_reference(
    kernel: Callable[..., Any], n_tokens: int, n_channels: int, rotary_dim: int, dtype: torch.dtype
) -> None:
    """Two products and a sum: at most three roundings of 2**-24 of (|low| + |high|) on either side, fused or not, so 2**-21 covers both;
    then a cast, by eps * |out| at most, or half a subnormal float16 (2**-24)."""
    keys, rows = keys_and_rows(n_tokens, n_channels, dtype)
    cos, sin = tables(n_tokens, rotary_dim)
    expected = poisoned(n_channels, dtype)
    rotate_scatter.reference_write(keys, cos, sin, rows, expected)
    _, (*_, cache) = kernel("rotate_scatter", "write", keys, cos, sin, rows, poisoned(n_channels, dtype))
    assert torch.equal(cache.isnan(), expected.isnan())  # every element of the rows was written, and no other
    written, wanted = cache[:, rows].float(), expected[:, rows].float()
    tolerance = 2**-21 * 2 * keys.float().abs().max() + torch.finfo(dtype).eps * wanted.abs() + 2**-24
    assert ((written - wanted).abs() <= tolerance).all()


@pytest.mark.parametrize("rotary_dim", [2, 32, 64])
def test_channel_pairs_rotate_as_complex_numbers(rotary_dim: int) -> None:
    """Channel i + i * channel (i + R / 2) is multiplied by exp(i * angle): the definition, in float64."""
    keys, rows = keys_and_rows(20, 64, torch.float32)
    cos, sin = tables(20, rotary_dim)
    cache = poisoned(64, torch.float32)
    rotate_scatter.write(keys, cos, sin, rows, cache)
    half = rotary_dim // 2
    turned = torch.complex(keys[..., :half], keys[..., half:rotary_dim]).to(torch.complex128) * torch.complex(cos, sin)[:, :half]
    out = cache[:, rows]
    # Three float32 roundings of values below |low| + |high| <= 2 * max|key|.
    tolerance = 3 * 2**-24 * 2 * keys.abs().max()
    assert (out[..., :half] - turned.real).abs().max() <= tolerance
    assert (out[..., half:rotary_dim] - turned.imag).abs().max() <= tolerance
    assert torch.equal(out[..., rotary_dim:], keys[..., rotary_dim:])


def test_the_two_halves_of_a_table_are_both_read(kernel: Callable[..., Any]) -> None:
    """A scaled rotary embedding may give the halves different tables."""
    keys, rows = torch.ones(2, 3, 4), torch.tensor([0, 1, 2])
    cos = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).expand(3, 4)
    sin = torch.tensor([[10.0, 20.0, 30.0, 40.0]]).expand(3, 4)
    reference = torch.zeros(2, 3, 4)
    rotate_scatter.write(keys, cos, sin, rows, reference)
    _, (*_, cache) = kernel("rotate_scatter", "write", keys, cos, sin, rows, torch.zeros(2, 3, 4))
    assert reference[1, 2].tolist() == cache[1, 2].tolist() == [1 - 10, 2 - 20, 3 + 30, 4 + 40]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_cache_may_have_another_dtype(kernel: Callable[..., Any], dtype: torch.dtype) -> None:
    """Decoded float32 keys go to a bfloat16 cache with one rounding, after the rotation."""
    keys, rows = keys_and_rows(5, 32, torch.float32)
    cos, sin = tables(5, 32)
    exact = poisoned(32, torch.float32)
    rotate_scatter.write(keys, cos, sin, rows, exact)
    _, (*_, cache) = kernel("rotate_scatter", "write", keys, cos, sin, rows, poisoned(32, dtype))
    assert cache.dtype == dtype
    # The cast, plus the kernel's own float32 roundings as above.
    tolerance = torch.finfo(dtype).eps * exact[:, rows].abs() + 2**-21 * 2 * keys.abs().max()
    assert ((cache[:, rows].float() - exact[:, rows]).abs() <= tolerance).all()


def test_views_with_any_strides_are_read_and_written(kernel: Callable[..., Any]) -> None:
    """A cache is often a slice of a larger one, and keys a transposed (T, H, D)."""
    keys, rows = keys_and_rows(33, 32, torch.float32)
    cos, sin = tables(33, 16)
    expected = poisoned(32, torch.float32)
    rotate_scatter.write(keys, cos, sin, rows, expected)
    transposed = keys.transpose(0, 1).contiguous().transpose(0, 1)
    for write in (rotate_scatter.write, lambda *args: kernel("rotate_scatter", "write", *args)[1][-1]):
        cache = torch.full((300, 2, 40), float("nan")).transpose(0, 1)[..., 4:36]
        cache = cache if (written := write(transposed, cos, sin, rows, cache)) is None else written
        assert torch.equal(cache.isnan(), expected.isnan())
        # Both sides rotate with at most three float32 roundings; see the comparison with the reference.
        assert (cache - expected)[:, rows].abs().max() <= 2**-21 * 2 * keys.abs().max()


def test_no_tokens_write_nothing(kernel: Callable[..., Any]) -> None:
    """The boundary below one token."""
    args = (torch.empty(2, 0, 32), torch.empty(0, 32), torch.empty(0, 32), torch.empty(0, dtype=torch.int64))
    cache = poisoned(32, torch.float32)
    rotate_scatter.write(*args, cache)
    assert cache.isnan().all()
    assert kernel("rotate_scatter", "write", *args, poisoned(32, torch.float32))[1][-1].isnan().all()


@pytest.mark.parametrize("row", [-1, 300])
def test_a_row_outside_the_cache_is_refused(row: int) -> None:
    """On CPU an IndexError; on a device the same check is an assertion of the device."""
    keys, rows = keys_and_rows(3, 32, torch.float32)
    rows[1] = row
    with pytest.raises(IndexError):
        rotate_scatter.write(keys, *tables(3, 32), rows, poisoned(32, torch.float32))


@pytest.mark.parametrize("row", [-1, 300])
def test_the_kernel_refuses_a_row_outside_the_cache(interpret: Callable[..., Any], row: int) -> None:
    """In the interpreter only: the assertion would end this process's use of a CUDA device."""
    keys, rows = keys_and_rows(3, 32, torch.float32)
    rows[1] = row
    with pytest.raises(AssertionError, match="index out of range"):
        interpret("rotate_scatter", "write", keys, *tables(3, 32), rows, poisoned(32, torch.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cos": torch.zeros(4, 15), "sin": torch.zeros(4, 15)}, "rotary dimension 15 is not even"),
        ({"cos": torch.zeros(4, 34), "sin": torch.zeros(4, 34)}, r"rotary dimension 34 is not even and within 2..32"),
        ({"cos": torch.zeros(4, 32, dtype=torch.float16)}, "cos: expected torch.float32"),
        ({"sin": torch.zeros(3, 32)}, r"sin: expected torch.float32 \(4, 32\)"),
        ({"rows": torch.zeros(4, dtype=torch.int32)}, "rows: expected torch.int64"),
        ({"cache": torch.zeros(3, 9, 32)}, r"are not \(H, T, D\) and \(H, N, D\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change: dict[str, torch.Tensor], message: str) -> None:
    """A kernel does not check bounds."""
    fitting = {
        "keys": torch.zeros(2, 4, 32),
        "cos": torch.zeros(4, 32),
        "sin": torch.zeros(4, 32),
        "rows": torch.arange(4),
        "cache": torch.zeros(2, 9, 32),
    }
    with pytest.raises(ValueError, match=message):
        rotate_scatter.write(**(fitting | change))
