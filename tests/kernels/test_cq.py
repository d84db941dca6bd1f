"""CQ's arithmetic: the nearest vector is found and fetched, by the kernel as by the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kvkernels import cq
from kvkernels.packing import packed_nbytes

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
GRIDS = [(1, 40, 2, 16), (33, 24, 4, 256), (17, 20, 8, 1024)]
"""Tokens, channels, channels of a run (which do not always divide them) and vectors."""


def values(n_tokens: int, dim: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return x (2, 2, T, D)."""
    return torch.randn(2, 2, n_tokens, dim, generator=torch.Generator().manual_seed(0)).to(dtype)


def random_books(dim: int, couple: int, n_vectors: int) -> torch.Tensor:
    """Return codebooks (2, 2, G, K, c) that end with zeros where channels are missing."""
    books = torch.randn(2, 2, -(-dim // couple), n_vectors, couple, generator=torch.Generator().manual_seed(1))
    if dim % couple:
        books[:, :, -1, :, dim % couple :] = 0
    return books.half()


def distances(x: torch.Tensor, books: torch.Tensor) -> torch.Tensor:
    """Return the squared distances (2, 2, T, G, K) of all vectors, in float64."""
    runs = cq.runs_of(x.double(), books.shape[-1]).transpose(2, 3)
    return (runs[:, :, :, :, None] - books.double()[:, :, None]).square().sum(-1)


def assert_nearest(x: torch.Tensor, books: torch.Tensor, nearest: torch.Tensor) -> None:
    """Two vectors may be equally near but for rounding: of sums of at most 9 products below 64, 16 * 64 * 2**-24 < 1e-4."""
    every = distances(x, books)
    chosen = every.gather(-1, nearest.long()[..., None])[..., 0]
    assert (chosen <= every.amin(-1) + 1e-4).all()


@pytest.mark.parametrize(("n_tokens", "dim", "couple", "n_vectors"), GRIDS)
def test_the_reference_finds_a_nearest_vector(n_tokens: int, dim: int, couple: int, n_vectors: int) -> None:
    x, books = values(n_tokens, dim), random_books(dim, couple, n_vectors)
    assert_nearest(x, books, cq.reference_nearest(x, books))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_tokens", "dim", "couple", "n_vectors"), GRIDS)
def test_the_kernel_finds_a_nearest_vector(
    kernel: Callable[..., Any], n_tokens: int, dim: int, couple: int, n_vectors: int, dtype: torch.dtype
) -> None:
    x, books = values(n_tokens, dim, dtype), random_books(dim, couple, n_vectors)
    codes, _ = kernel("cq", "encode", x, books)
    assert codes.shape == cq.stored_shape(x.shape, couple, n_vectors.bit_length() - 1)
    assert_nearest(x, books, cq.unpack(codes, books.shape[2], n_vectors))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_tokens", "dim", "couple", "n_vectors"), GRIDS)
def test_the_kernel_fetches_what_the_reference_fetches(
    kernel: Callable[..., Any], n_tokens: int, dim: int, couple: int, n_vectors: int, dtype: torch.dtype
) -> None:
    """The interpreter casts to bfloat16 toward zero, a device to the nearest: one unit in the last place apart at most."""
    books = random_books(dim, couple, n_vectors)
    codes = cq.encode(values(n_tokens, dim), books)
    back, _ = kernel("cq", "decode", codes, books, dim, dtype)
    expected = cq.decode(codes, books, dim, dtype)
    assert back.dtype == dtype
    assert ((back.float() - expected.float()).abs() <= torch.finfo(dtype).eps * expected.float().abs()).all()


def test_vectors_come_back_as_they_are() -> None:
    """A passage made of vectors is coded without loss."""
    books = random_books(24, 4, 16)
    nearest = torch.randint(0, 16, (2, 2, 7, 6), generator=torch.Generator().manual_seed(2))
    x = cq.reference_gather(nearest, books, 24, torch.float32)
    assert torch.equal(cq.decode(cq.encode(x, books), books, 24, torch.float32), x)


def test_the_first_of_equal_vectors_is_taken(kernel: Callable[..., Any]) -> None:
    books = torch.ones(2, 2, 6, 256, 4).half()
    x = values(9, 24)
    assert not cq.encode(x, books).any()
    assert not kernel("cq", "encode", x, books)[0].any()


@pytest.mark.parametrize("value", [2.0**126, -(2.0**126), 1e-40])
def test_extreme_values_find_some_vector(kernel: Callable[..., Any], value: float) -> None:
    """Products with the largest float16 stay finite: a value beyond 2**40 counts as 2**40."""
    books = random_books(24, 8, 256) * 4e4
    x = torch.full((2, 2, 5, 24), value)
    codes = cq.encode(x, books.clamp(-6e4, 6e4))
    assert torch.equal(kernel("cq", "encode", x, books.clamp(-6e4, 6e4))[0], codes)


def test_what_does_not_fit_is_refused() -> None:
    books, codes = random_books(24, 4, 16), torch.zeros(2, 2, 5, packed_nbytes(6, 16), dtype=torch.uint8)
    with pytest.raises(ValueError, match="codebooks: expected"):
        cq.encode(values(3, 23 + 8), books)
    with pytest.raises(ValueError, match="codes: expected"):
        cq.decode(codes[..., 1:], books, 24, torch.float32)
    with pytest.raises(ValueError, match="codebooks: expected"):
        cq.decode(codes, books, 25, torch.float32)
