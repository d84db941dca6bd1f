"""What is timed of the kernels on a GPU: every call with the bytes that it has to read and write."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from kvkernels import cq, exponent_split, fp8, hadamard, int8, kivi, pca, place, rotate_scatter, skvq, turboquant

HEADS = 8
_TURNS, _WARM = 20, 3
_WIDTHS = (8,) * 8 + (6,) * 8 + (4,) * 16 + (2,) * 40
"""Bits of blocks of components: 2 a value of 1,024 channels, as `pca` gives them to layers whose first axes matter most."""
Encode = Callable[[], Sequence[torch.Tensor]]
Decode = Callable[[Sequence[torch.Tensor]], object]


@dataclass(frozen=True)
class Case:
    """A call, and the tensors that go through memory once: read or written."""

    variant: str
    call: Callable[[], object]
    moved: tuple[torch.Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes read plus written."""
        return sum(x.nbytes for x in self.moved)


def cases(x: torch.Tensor) -> Iterator[Case]:
    """Yield encode, decode and, where there is one, decode into a cache of every operator for keys x (M, T, D) of layers of HEADS heads."""
    dim, dtype = x.shape[-1], x.dtype
    yield from _both("int8", x, lambda: int8.encode(x), lambda p: int8.decode(p[0], p[1], dtype))
    yield from _both("fp8", x, lambda: fp8.encode(x), lambda p: fp8.decode(p[0], p[1], dtype))
    for axis in kivi.AXES:
        yield from _both(f"kivi4_{axis}", x, *_kivi(x, axis))
    yield from _both("hadamard4", x, lambda: hadamard.encode(x, 4), lambda p: hadamard.decode(p[0], p[1], p[2], dim, 4, dtype))
    yield from _both("turboquant3", x, lambda: turboquant.encode(x, 3), lambda p: turboquant.decode(p[0], p[1], dim, 3, dtype))
    yield from _both("exponent_split", x, lambda: exponent_split.encode(x), lambda p: exponent_split.decode(p[0], p[1], dtype))
    yield from _of_layers(torch.unflatten(x, 0, (-1, HEADS)))
    yield from placed(x)


def _of_layers(x: torch.Tensor) -> Iterator[Case]:
    """Yield encode and decode of operators that have tables, of keys x (L, H, T, D)."""
    n_layers, kv_heads, _, dim = x.shape
    groups = (torch.arange(kv_heads * dim, device=x.device) % kv_heads).expand(n_layers, -1).contiguous()
    one = torch.ones(n_layers, device=x.device)
    yield from _both(
        "skvq2",
        x,
        lambda: skvq.encode(x, groups, kv_heads, one, one, 4, "float8"),
        lambda p: skvq.decode(p[0], p[1], p[2], groups, one, kv_heads, 4, x.dtype),
    )
    books = torch.randn(n_layers, kv_heads, dim // 4, 256, 4, device=x.device).half()
    yield from _both("cq2", x, lambda: [cq.encode(x, books)], lambda p: cq.decode(p[0], books, dim, x.dtype), books)
    axes = _axes(x)
    yield from _both(
        "pca2",
        x,
        lambda: [pca.encode(layer, own) for layer, own in zip(x, axes, strict=True)],
        lambda p: [pca.decode(codes, own, None, kv_heads, x.dtype) for codes, own in zip(p, axes, strict=True)],
        *(own.basis for own in axes),
    )


def _axes(x: torch.Tensor) -> list[pca.Axes]:
    """Return axes for every layer of x (L, H, T, D), of as many bits as the channels make room for at 2 a value."""
    n_channels = x.shape[1] * x.shape[3]
    widths = _WIDTHS[:: max(1, 1024 // n_channels)]
    weight, mean, step = torch.ones(n_channels), torch.zeros(n_channels), torch.ones(pca.BLOCK * len(widths))
    found = []
    for _ in range(len(x)):
        basis = torch.randn(n_channels, len(step), device=x.device).half() / n_channels**0.5
        found.append(pca.Axes(weight.to(x.device), mean.to(x.device), basis, step.to(x.device), widths))
    return found


def placed(x: torch.Tensor) -> Iterator[Case]:
    """Yield what writes keys x (M, T, D) into a cache, rotated: from codes, and from decoded keys."""
    n_tokens, dim = x.shape[1:]
    cos, sin = (torch.randn(n_tokens, dim, device=x.device) for _ in range(2))
    rows, cache = torch.arange(n_tokens, device=x.device), torch.empty_like(x)
    common = (cos, sin, rows, cache)
    codes, of_int8 = int8.encode(x)
    yield Case("int8_place", lambda: place.write_int8(codes, of_int8, (cos, sin), rows, cache), (codes, of_int8, *common))
    bytes_, of_fp8 = fp8.encode(x)
    yield Case("fp8_place", lambda: place.write_fp8(bytes_, of_fp8, (cos, sin), rows, cache), (bytes_, of_fp8, *common))
    parts = kivi.encode(x, 4, 32, "token")
    yield Case("kivi4_place", lambda: place.write_kivi(parts, 4, 32, "token", (cos, sin), rows, cache), (*parts, *common))
    yield _pca_place(torch.unflatten(x, 0, (-1, HEADS)), (cos, sin), rows, torch.unflatten(cache, 0, (-1, HEADS)))
    yield Case("values_place", lambda: place.write_values(x, (cos, sin), rows, cache), (x, *common))
    yield Case("rotate_scatter", lambda: rotate_scatter.write(x, cos, sin, rows, cache), (x, *common))


def _pca_place(x: torch.Tensor, turn: place.Turn, rows: torch.Tensor, cache: torch.Tensor) -> Case:
    """Return what turns components of keys x (L, H, T, D) back and writes them into a cache."""
    axes = _axes(x)
    coded = [pca.encode(layer, own) for layer, own in zip(x, axes, strict=True)]

    def write() -> None:
        for codes, own, target in zip(coded, axes, cache, strict=True):
            place.write_pca(codes, own, None, turn, rows, target)

    return Case("pca2_place", write, (*coded, *(own.basis for own in axes), *turn, rows, cache))


def seconds(call: Callable[[], object]) -> list[float]:
    """Return how long a call takes on the device, several times, after a few that warm up."""
    taken = []
    for turn in range(_WARM + _TURNS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        call()
        end.record()
        end.synchronize()
        if turn >= _WARM:
            taken.append(begin.elapsed_time(end) / 1e3)
    return taken


def copy_bytes_per_s(nbytes: int, device: torch.device) -> float:
    """Return the bandwidth, read plus written, of a copy between two tensors of this size."""
    source = torch.empty(nbytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * nbytes / statistics.median(seconds(lambda: target.copy_(source)))


def _kivi(x: torch.Tensor, axis: kivi.Axis) -> tuple[Encode, Decode]:
    """Return encode and decode of 4 bits along an axis."""
    return lambda: kivi.encode(x, 4, 32, axis), lambda p: kivi.decode(p[0], p[1], p[2], x.shape, 4, 32, axis, x.dtype)


def _both(name: str, x: torch.Tensor, encode: Encode, decode: Decode, *tables: torch.Tensor) -> Iterator[Case]:
    """Yield encode and decode of one operator, which read tables."""
    parts = tuple(encode())
    yield Case(f"{name}_encode", encode, (x, *parts, *tables))
    yield Case(f"{name}_decode", lambda: decode(parts), (x, *parts, *tables))
