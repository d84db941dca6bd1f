"""Decoding into a cache: the kernel equals decode, rotate and scatter one after the other, and writes its rows only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kvkernels import fp8, int8, kivi, pca, place, rotate_scatter

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZES = [(1, 32, 32), (63, 80, 32), (33, 7, 6), (257, 128, 128)]  # tokens, channels, rotary dimension
CODECS = ("values", "int8", "fp8", "kivi4 token", "kivi2 token", "kivi4 channel", "kivi2 channel")


def stored(codec: str, n_tokens: int, n_channels: int) -> tuple[str, list[Any], torch.Tensor]:
    """Return the operator's function, its arguments before `turn`, and the float32 values that they stand for."""
    x = torch.randn(2, n_tokens, n_channels, generator=torch.Generator().manual_seed(0))
    x[..., 3] = x[..., 3] * 30 + 100
    if codec == "values":
        return "write_values", [x.bfloat16()], x.bfloat16().float()
    if codec.startswith("kivi"):
        bits, axis = int(codec[4]), codec[6:]
        parts = kivi.reference_encode(x.bfloat16(), bits, 16, axis)  # type: ignore[arg-type]
        return "write_kivi", [parts, bits, 16, axis], kivi.reference_decode(*parts, x.shape, bits, 16, axis, torch.float32)  # type: ignore[arg-type]
    method: Any = int8 if codec == "int8" else fp8
    parts = method.reference_encode(x)
    return f"write_{codec}", list(parts), method.reference_decode(*parts, torch.float32)


def turn(n_tokens: int, rotary_dim: int) -> place.Turn:
    """Return cos and sin (T, R) for positions from 1,000 on."""
    frequency = 10000.0 ** (-torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)
    angle = torch.arange(1000, 1000 + n_tokens, dtype=torch.float64)[:, None] * frequency
    return torch.cat([angle.cos()] * 2, -1).float(), torch.cat([angle.sin()] * 2, -1).float()


def rows_of(n_tokens: int) -> torch.Tensor:
    """Return distinct rows among 300 in no order."""
    return torch.randperm(300, generator=torch.Generator().manual_seed(1))[:n_tokens]


def poisoned(n_channels: int, dtype: torch.dtype) -> torch.Tensor:
    """Return a cache (2, 300, D) of NaN."""
    return torch.full((2, 300, n_channels), float("nan"), dtype=dtype)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_tokens", "n_channels", "rotary_dim"), SIZES)
def test_kernel_equals_decoding_and_rotating_apart(
    kernel: Callable[..., Any], n_tokens: int, n_channels: int, rotary_dim: int, dtype: torch.dtype, codec: str
) -> None:
    """Decoding rounds a product and a sum, rotating two products and a sum: five roundings of 2**-24 of the largest value, on either side,
    fused or not; then a cast by eps * |out| at most, or half a subnormal float16."""
    function, args, values = stored(codec, n_tokens, n_channels)
    tables, rows = turn(n_tokens, rotary_dim), rows_of(n_tokens)
    expected = poisoned(n_channels, torch.float32)
    rotate_scatter.reference_write(values, *tables, rows, expected)
    _, (*_, cache) = kernel("place", function, *args, tables, rows, poisoned(n_channels, dtype))
    assert torch.equal(cache.isnan(), expected.isnan())  # every element of the rows was written, and no other
    wanted = expected[:, rows]
    tolerance = 2**-20 * values.abs().max() + torch.finfo(dtype).eps * wanted.abs() + 2**-24
    assert ((cache[:, rows].float() - wanted).abs() <= tolerance).all()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("n_tokens", [1, 63])
def test_values_are_written_as_they_decode(kernel: Callable[..., Any], n_tokens: int, codec: str) -> None:
    """Without a rotation nothing but the cast rounds, apart from a fused product and sum."""
    function, args, values = stored(codec, n_tokens, 80)
    rows = rows_of(n_tokens)
    _, (*_, cache) = kernel("place", function, *args, None, rows, poisoned(80, torch.float32))
    assert torch.equal(cache.isnan().all(-1), torch.ones(2, 300).index_fill(1, rows, 0).bool())
    assert ((cache[:, rows] - values).abs() <= 2**-23 * values.abs().max()).all()


@pytest.mark.parametrize("codec", CODECS)
def test_the_reference_writes_what_the_kernel_writes(kernel: Callable[..., Any], codec: str) -> None:
    """On the CPU the operators run through torch."""
    function, args, values = stored(codec, 33, 32)
    tables, rows, cache = turn(33, 32), rows_of(33), poisoned(32, torch.float32)
    getattr(place, function)(*args, tables, rows, cache)
    _, (*_, other) = kernel("place", function, *args, tables, rows, poisoned(32, torch.float32))
    assert (cache - other)[:, rows].abs().max() <= 2**-20 * values.abs().max()


def test_a_strided_cache_is_written(kernel: Callable[..., Any]) -> None:
    """A cache is often a slice of a larger one."""
    function, args, values = stored("int8", 33, 32)
    rows, cache = rows_of(33), torch.full((300, 2, 40), float("nan")).transpose(0, 1)[..., 4:36]
    _, (*_, written) = kernel("place", function, *args, None, rows, cache)
    assert torch.equal(written[:, rows], values)


@pytest.mark.parametrize("codec", CODECS)
def test_no_tokens_write_nothing(kernel: Callable[..., Any], codec: str) -> None:
    """The boundary below one token."""
    function, args, _ = stored(codec, 0, 32)
    cache = poisoned(32, torch.float32)
    getattr(place, function)(*args, turn(0, 32), rows_of(0), cache)
    assert cache.isnan().all()
    assert kernel("place", function, *args, turn(0, 32), rows_of(0), poisoned(32, torch.float32))[1][-1].isnan().all()


def test_values_beyond_float16_become_its_largest(kernel: Callable[..., Any]) -> None:
    """E4M3 may round 65504 up to 65536."""
    x = torch.full((1, 1, 8), 65504.0)
    args = (*fp8.reference_encode(x), None, torch.tensor([0]))
    cache = torch.zeros(1, 1, 8, dtype=torch.float16)
    place.write_fp8(*args, cache)
    _, (*_, other) = kernel("place", "write_fp8", *args, torch.zeros(1, 1, 8, dtype=torch.float16))
    assert cache.tolist() == other.tolist() == [[[65504.0] * 8]]


@pytest.mark.parametrize("codec", CODECS)
def test_a_token_without_a_row_is_left_out(kernel: Callable[..., Any], codec: str) -> None:
    """Rows of a prompt that are computed keep what was computed, amid a passage; kernel and reference alike."""
    function, args, values = stored(codec, 33, 32)
    rows = rows_of(33)
    rows[::5] = -1
    cache = poisoned(32, torch.float32)
    getattr(place, function)(*args, None, rows, cache)
    _, (*_, other) = kernel("place", function, *args, None, rows, poisoned(32, torch.float32))
    for written in (cache, other):
        kept = rows != -1
        assert torch.equal(written.isnan().all(-1), torch.ones(2, 300).index_fill(1, rows[kept], 0).bool())
        assert ((written[:, rows[kept]] - values[:, kept]).abs() <= 2**-23 * values.abs().max()).all()


@pytest.mark.parametrize("row", [-2, 300])
def test_the_kernel_refuses_a_row_outside_the_cache(interpret: Callable[..., Any], row: int) -> None:
    """In the interpreter only: the assertion would end this process's use of a CUDA device."""
    function, args, _ = stored("int8", 3, 32)
    rows = torch.tensor([0, row, 2])
    with pytest.raises(AssertionError, match="index out of range"):
        interpret("place", function, *args, None, rows, poisoned(32, torch.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": torch.zeros(2, 3, 1)}, r"scale: expected torch.float32 \(2, 4, 1\)"),
        ({"turn": (torch.zeros(4, 15), torch.zeros(4, 15))}, "cos: rotary dimension 15 is not even"),
        ({"turn": (torch.zeros(4, 32), torch.zeros(3, 32))}, r"sin: expected torch.float32 \(4, 32\)"),
        ({"rows": torch.zeros(4, dtype=torch.int32)}, "rows: expected torch.int64"),
        ({"cache": torch.zeros(3, 9, 32)}, r"are not of \(M, T, D\) and \(M, N, D\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    """A kernel does not check bounds."""
    fitting = {
        "codes": torch.zeros(2, 4, 32, dtype=torch.int8),
        "scale": torch.zeros(2, 4, 1),
        "turn": None,
        "rows": torch.arange(4),
        "cache": torch.zeros(2, 9, 32),
    }
    with pytest.raises(ValueError, match=message):
        place.write_int8(**(fitting | change))  # type: ignore[arg-type]


def test_three_bits_are_refused() -> None:
    """Their codes span bytes; the message says what to call."""
    parts = kivi.encode(torch.zeros(2, 8, 32), 3, 16, "token")
    with pytest.raises(ValueError, match=r"call rotate_scatter\.write"):
        place.write_kivi(parts, 3, 16, "token", None, torch.arange(8), torch.zeros(2, 9, 32))


def axes(n_channels: int) -> pca.Axes:
    """Return axes of 24 components, of which some blocks are wider than others."""
    draw, widths = torch.Generator().manual_seed(1), (6, 3, 1)
    basis = torch.randn(n_channels, 24, generator=draw).half() / n_channels**0.5
    step = 2.0 ** -torch.tensor(widths).repeat_interleave(pca.BLOCK).float()
    return pca.Axes(0.5 + torch.rand(n_channels, generator=draw), torch.randn(n_channels, generator=draw), basis, step, widths)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_tokens", "dim", "rotary_dim", "has_gain"), [(1, 32, 32, 0), (63, 80, 32, 1), (33, 7, 6, 0), (9, 130, 0, 1)])
def test_components_are_written_as_decoded_and_rotated(
    kernel: Callable[..., Any], n_tokens: int, dim: int, rotary_dim: int, has_gain: int, dtype: torch.dtype
) -> None:
    """Sums of 24 products in another order, 2**-24 of their magnitudes each; then rotation and cast as above. One row is left out."""
    own, draw = axes(2 * dim), torch.Generator().manual_seed(2)
    data = torch.randint(0, 256, (n_tokens, own.nbytes), generator=draw, dtype=torch.uint8)
    gain = torch.randint(120, 140, (2, n_tokens), generator=draw, dtype=torch.uint8) if has_gain else None
    tables, rows = turn(n_tokens, rotary_dim) if rotary_dim else None, rows_of(n_tokens)
    rows[n_tokens // 2] = -1 if n_tokens > 1 else rows[0]
    expected = poisoned(dim, torch.float32)
    place.write_pca(data, own, gain, tables, rows, expected)
    _, (*_, cache) = kernel("place", "write_pca", data, tuple(own), gain, tables, rows, poisoned(dim, dtype))
    assert torch.equal(cache.isnan(), expected.isnan())
    wanted = expected.nan_to_num()
    tolerance = 2**-17 * wanted.abs().max() + torch.finfo(dtype).eps * wanted.abs()
    assert ((cache.float().nan_to_num() - wanted).abs() <= tolerance).all()


def test_components_of_another_layer_are_refused() -> None:
    """A kernel does not check bounds."""
    data, rows = torch.zeros(4, axes(64).nbytes, dtype=torch.uint8), torch.arange(4)
    with pytest.raises(ValueError, match=r"weight: expected torch\.float32 \(60,\)"):
        place.write_pca(data, axes(64), None, None, rows, torch.zeros(2, 9, 30))
    with pytest.raises(ValueError, match=r"codes: expected torch\.uint8 \(4, 10\)"):
        place.write_pca(data[:, 1:], axes(64), None, None, rows, torch.zeros(2, 9, 32))
