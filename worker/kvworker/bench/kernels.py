"""Kernels: compiled forms on the CPU against plain torch, and Triton kernels on a GPU against the device's copy bandwidth.

CPU rows are of a layer group of an 8B model, 8 layers of 8 heads of 128 channels in bfloat16, K and V, on one thread and on as many as
torch takes; GB/s are of its raw bytes. `eager` is the formula as one writes it in torch, `blocked` the reference in slabs, `compiled` what
torch compiles of it, for K and V in one call where the codec does so; `compiled_over_eager` is the ratio of times, turn by turn. Eager's
temporaries are mapped anew in every call or not, as the heap happens to lie, which is worth a factor of three; compiled forms have none.
GPU rows are of K of 32 such layers: GB/s of bytes read plus written, and their share of a copy's; `group_us` is what a group of 8 layers
takes from codes into a cache. Without a GPU those rows stay open, which is said on stderr.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch

from kvclient.cli.output import Output
from kvkernels import compiled, int8, int8_compiled, kivi, kivi_compiled
from kvworker.bench import kernel_gpu
from kvworker.bench.benchmark import Asked, show_rows
from kvworker.bench.kernel_plain import decode_int8, decode_kivi4, encode_int8, encode_kivi4
from kvworker.bench.rows import Bench, Row, cpu_name

_LAYERS, _GROUP_LAYERS, _HEADS, _DIM, _DTYPE = 32, 8, kernel_gpu.HEADS, 128, torch.bfloat16
_WARM = 4
_CPU_SIZES = 2
Call = Callable[[], object]


@dataclass(frozen=True)
class KernelsBench:
    """`larder bench kernels`.

    Parameters
    ----------
    sizes : tuple of int
        Tokens of a chunk; a multiple of 32, the group of `kivi`.
    turns : int
        How often everything is timed on the CPU.
    """

    name: ClassVar[str] = "kernels"
    sizes: tuple[int, ...] = (256, 1024, 4096, 16_384)
    turns: int = 15

    @classmethod
    def quick(cls) -> KernelsBench:
        """Return the benchmark at a size that ends within a minute on two cores."""
        return cls(sizes=(256,), turns=9)

    def run(self, asked: Asked) -> Iterator[Row]:
        """Yield CPU rows at the first sizes, then GPU rows at all, where there is a GPU."""
        if not compiled.has_compiler():
            print("no C++ compiler: compiled rows are open", file=sys.stderr)
        for n_threads in sorted({1, torch.get_num_threads()}):
            with _threads(n_threads):
                for size in self.sizes[:_CPU_SIZES]:
                    yield from self._cpu_rows(size)
        if not torch.cuda.is_available():
            print("no CUDA device: rows of kernels on a GPU are open", file=sys.stderr)
            return
        for size in self.sizes:
            yield from _gpu_rows(size)

    def show(self, rows: Sequence[Row], output: Output) -> None:
        """Print one line per row."""
        show_rows(rows, output)

    def _cpu_rows(self, size: int) -> Iterator[Row]:
        """Yield the rows of every operation."""
        bench = Bench(self.name, "tokens", f"{cpu_name()}, {torch.get_num_threads()} threads", "bfloat16")
        k, v = (_values(size, seed, "cpu", _GROUP_LAYERS) for seed in (0, 1))
        for variant, eager, blocked, own in _operations(k, v):
            ways = {"eager": eager, "blocked": blocked} | ({"compiled": own} if compiled.has_forms() else {})
            taken = _in_turn(ways, self.turns)
            for way, times in taken.items():
                yield bench.row(variant, f"{way}_gb_per_s", "GB/s", size, [(k.nbytes + v.nbytes) / s / 1e9 for s in times])
            if "compiled" in taken:
                ratios = [slow / fast for slow, fast in zip(taken["eager"], taken["compiled"], strict=True)]
                yield bench.row(variant, "compiled_over_eager", "ratio", size, ratios)


@contextmanager
def _threads(n_threads: int) -> Iterator[None]:
    """Run torch on so many threads, with forms that were compiled for them where there is a compiler."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        if compiled.has_compiler():
            int8_compiled.prepare(_DIM, _DIM, _DTYPE)
            kivi_compiled.prepare(_DIM, _DTYPE)
        yield
    finally:
        compiled.forget()
        torch.set_num_threads(before)


def _operations(k: torch.Tensor, v: torch.Tensor) -> Iterator[tuple[str, Call, Call, Call]]:
    """Yield every operation with its plain form, its reference and the operator itself, each over K and V."""
    coded = [int8.reference_encode(x) for x in (k, v)]
    yield (
        "int8_encode",
        lambda: [encode_int8(x) for x in (k, v)],
        lambda: [int8.reference_encode(x) for x in (k, v)],
        lambda: [int8.encode(x) for x in (k, v)],
    )
    yield (
        "int8_decode",
        lambda: [decode_int8(*parts, _DTYPE) for parts in coded],
        lambda: [int8.reference_decode(*parts, _DTYPE) for parts in coded],
        lambda: int8.decode_both(coded[0], coded[1], _DTYPE),
    )
    yield from _kivi_operations(((k, "token"), (v, "channel")))


def _kivi_operations(sides: tuple[tuple[torch.Tensor, kivi.Axis], ...]) -> Iterator[tuple[str, Call, Call, Call]]:
    """Yield encode and decode of 4 bits, K along tokens and V along channels."""
    axes = {"token": -2, "channel": -1}
    grouped = [(*kivi.reference_encode(x, 4, 32, axis), x.shape, 4, 32, axis, _DTYPE) for x, axis in sides]
    plain = [(*encode_kivi4(x, axes[axis]), axes[axis]) for x, axis in sides]
    yield (
        "kivi4_encode",
        lambda: [encode_kivi4(x, axes[axis]) for x, axis in sides],
        lambda: [kivi.reference_encode(x, 4, 32, axis) for x, axis in sides],
        lambda: [kivi.encode(x, 4, 32, axis) for x, axis in sides],
    )
    yield (
        "kivi4_decode",
        lambda: [decode_kivi4(*parts) for parts in plain],
        lambda: [kivi.reference_decode(*parts) for parts in grouped],
        lambda: [kivi.decode(*parts) for parts in grouped],
    )


def _in_turn(ways: dict[str, Call], turns: int) -> dict[str, list[float]]:
    """Return the seconds of every way, in turn; each time after calls that bring caches and the allocator to where they are in a row."""
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(turns):
        for way, call in ways.items():
            for _ in range(_WARM):
                call()
            begin = time.perf_counter()
            call()
            taken[way].append(time.perf_counter() - begin)
    return taken


def _gpu_rows(size: int) -> Iterator[Row]:
    """Yield bandwidth, and share of a copy's, of every kernel, and the time of a group of layers."""
    bench = Bench(KernelsBench.name, "tokens", torch.cuda.get_device_name(), "bfloat16")
    x = _values(size, 0, "cuda", _LAYERS).flatten(0, 1)
    copied = kernel_gpu.copy_bytes_per_s(x.nbytes, x.device)
    yield bench.row("copy", "gb_per_s", "GB/s", size, [copied / 1e9])
    for case in kernel_gpu.cases(x):
        rates = [case.nbytes / s for s in kernel_gpu.seconds(case.call)]
        yield bench.row(case.variant, "gb_per_s", "GB/s", size, [rate / 1e9 for rate in rates])
        yield bench.row(case.variant, "share_of_copy", "ratio", size, [rate / copied for rate in rates])
    for case in kernel_gpu.placed(x[: _GROUP_LAYERS * _HEADS]):
        yield bench.row(case.variant, "group_us", "us", size, [s * 1e6 for s in kernel_gpu.seconds(case.call)])


def _values(size: int, seed: int, device: str, n_layers: int) -> torch.Tensor:
    """Draw normal keys or values (L, H, T, D)."""
    x = torch.randn(n_layers, _HEADS, size, _DIM, generator=torch.Generator(device).manual_seed(seed), device=device)
    return x.to(_DTYPE)
