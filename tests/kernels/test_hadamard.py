"""Rotated codes (hadamard, turboquant): the rotation is what it says, and the kernels equal their references."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from kvkernels import backend, hadamard, turboquant

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
METHODS = {"hadamard": hadamard, "turboquant": turboquant}
SIZES = [(1, 32), (67, 80), (33, 7), (257, 128)]

each_method = pytest.mark.parametrize("name", METHODS)


def values(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Draw normal values with one channel that is 30 times larger and off centre, and a token of zeros."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    x[..., 3] = x[..., 3] * 30 + 100
    x[..., -1, :] = 0
    return x.to(dtype)


@pytest.mark.parametrize("size", [1, 2, 8, 128])
def test_rotating_twice_gives_back_what_was_rotated(size: int) -> None:
    """The decisive check: within 1e-6 of the vector's length; each of 2 * log2(N) sums rounds by 2**-24 of it."""
    x = torch.randn(50, size, generator=torch.Generator().manual_seed(0))
    assert ((hadamard.rotate(hadamard.rotate(x)) - x).norm(dim=1) <= 1e-6 * x.norm(dim=1)).all()


def test_rotation_is_the_matrix_of_walsh_and_hadamard() -> None:
    """Entry (i, j) is -1 to the number of bits that i and j share."""
    signs = torch.tensor([[(-1.0) ** (i & j).bit_count() for j in range(16)] for i in range(16)])
    x = torch.arange(16.0)
    assert torch.allclose(hadamard.rotate(x), signs @ x / 4)


def test_heads_are_cut_into_powers_of_two() -> None:
    """The largest first; each block's codes take whole bytes."""
    blocks, nbytes = hadamard.blocks_of(87, 3)
    assert [(b.start, b.size, b.at) for b in blocks] == [(0, 64, 0), (64, 16, 24), (80, 4, 30), (84, 2, 32), (86, 1, 33)]
    assert nbytes == 34


@each_method
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_tokens", "n_channels"), SIZES)
def test_encode_kernel_equals_the_reference_bit_for_bit(
    kernel: Callable[..., Any], n_tokens: int, n_channels: int, dtype: torch.dtype, bits: int, name: str
) -> None:
    """Sums are taken in one order, and every operation rounds correctly in both."""
    x = values(2, n_tokens, n_channels, dtype=dtype)
    parts, _ = kernel(name, "encode", x, bits)
    for part, expected in zip(parts, METHODS[name].reference_encode(x, bits), strict=True):
        assert torch.equal(part, expected)


@each_method
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_tokens", "n_channels"), SIZES)
def test_decode_kernel_equals_the_reference(
    kernel: Callable[..., Any], n_tokens: int, n_channels: int, dtype: torch.dtype, bits: int, name: str
) -> None:
    """A device may fuse a product and a sum, which saves one rounding of at most 2**-24 of the vector's length; sqrt(N) of them rotated is
    below 2**-20. Then a cast, not the same way in the interpreter for bfloat16."""
    parts = METHODS[name].reference_encode(values(2, n_tokens, n_channels, dtype=dtype), bits)
    back, _ = kernel(name, "decode", *parts, n_channels, bits, dtype)
    expected = METHODS[name].reference_decode(*parts, n_channels, bits, dtype).float()
    slack = torch.finfo(dtype).eps * expected.abs() + 2**-20 * expected.norm(dim=-1, keepdim=True) + 2**-24
    assert back.dtype == dtype
    assert ((back.float() - expected).abs() <= slack).all()


@pytest.mark.parametrize(
    ("name", "bits", "digest"),
    [
        ("hadamard", 3, "832b0a1eb92ff2f2"),
        ("hadamard", 4, "257269597ef8fe9b"),
        ("turboquant", 3, "0fb48d1aa7b0092c"),
        ("turboquant", 4, "f74793386d3f93c2"),
    ],
)
def test_bytes_are_those_of_the_first_release(name: str, bits: int, digest: str) -> None:
    """Golden bytes, by their digest: every operation is correctly rounded and in one order, so they are the same on every machine."""
    x = torch.tensor([(i * i * 7919 + 31 * i) % 4099 - 2000 for i in range(2 * 5 * 80)]).view(2, 5, 80).to(torch.bfloat16) / 64
    data = b"".join(part.contiguous().view(torch.uint8).numpy().tobytes() for part in METHODS[name].encode(x, bits))
    assert hashlib.sha256(data).hexdigest()[:16] == digest


@each_method
@pytest.mark.parametrize("shape", [(2, 0, 64), (0, 5, 64)])
def test_no_tokens_give_empty_parts(kernel: Callable[..., Any], shape: tuple[int, ...], name: str) -> None:
    """The boundary below one token."""
    for parts in (kernel(name, "encode", torch.empty(shape), 3)[0], METHODS[name].encode(torch.empty(shape), 3)):
        assert sum(part.nbytes for part in parts) == 0
        assert METHODS[name].decode(*parts, 64, 3, torch.float32).shape == shape


@each_method
def test_strides_and_slabs_do_not_show(monkeypatch: pytest.MonkeyPatch, kernel: Callable[..., Any], name: str) -> None:
    """The pipeline passes (L, H, T, D), often a permuted view."""
    x = values(2, 9, 3, 64, dtype=torch.bfloat16).transpose(1, 2)
    expected = METHODS[name].reference_encode(x.contiguous(), 4)
    found, _ = kernel(name, "encode", x, 4)
    monkeypatch.setattr(backend, "SLAB", 300)
    for parts in (found, METHODS[name].encode(x, 4)):
        assert all(torch.equal(part, other) for part, other in zip(parts, expected, strict=True))


@each_method
def test_unknown_widths_are_refused(name: str) -> None:
    """The message lists what there is."""
    with pytest.raises(ValueError, match=rf"{name}: bits 5; choose one of"):
        METHODS[name].encode(torch.zeros(4, 32), 5)


@each_method
def test_decode_refuses_parts_that_do_not_fit_the_channels(name: str) -> None:
    """A kernel does not check bounds, and these shapes come from stored bytes."""
    codes, *parameters = METHODS[name].encode(torch.zeros(2, 4, 32), 4)
    with pytest.raises(ValueError, match="codes: expected"):
        METHODS[name].decode(codes[..., :-1], *parameters, 32, 4, torch.float32)
