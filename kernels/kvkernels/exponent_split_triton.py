"""Triton kernels of `exponent_split`: one program moves BLOCK values, as integers so that no NaN payload is touched."""

# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def,no-untyped-call"
# ruff: noqa: N803
from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvkernels.exponent_split import WORD

BLOCK = 2048


@triton.jit
def encode_kernel(word_ptr, exponent_ptr, rest_ptr, n, ITEMSIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Fill the planes from n words."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    word = tl.load(word_ptr + at, mask=inside, other=0).to(tl.int32)
    top = word >> 8 * (ITEMSIZE - 2)
    tl.store(exponent_ptr + at, ((top >> 7) & 0xFF).to(tl.uint8), mask=inside)
    tl.store(rest_ptr + at, ((top >> 8 & 0x80) | (top & 0x7F)).to(tl.uint8), mask=inside)
    plane_at = at
    for plane in tl.static_range(1, ITEMSIZE - 1):
        plane_at += n
        tl.store(rest_ptr + plane_at, (word >> 8 * (ITEMSIZE - 2 - plane) & 0xFF).to(tl.uint8), mask=inside)


@triton.jit
def decode_kernel(exponent_ptr, rest_ptr, word_ptr, n, ITEMSIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Fill n words from the planes."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    exponent = tl.load(exponent_ptr + at, mask=inside, other=0).to(tl.int32)
    rest = tl.load(rest_ptr + at, mask=inside, other=0).to(tl.int32)
    word = (exponent << 7) | ((rest & 0x80) << 8) | (rest & 0x7F)
    plane_at = at
    for _ in tl.static_range(1, ITEMSIZE - 1):
        plane_at += n
        word = (word << 8) | tl.load(rest_ptr + plane_at, mask=inside, other=0).to(tl.int32)
    tl.store(word_ptr + at, word.to(word_ptr.dtype.element_ty), mask=inside)


def encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the exponent plane and the rest as `exponent_split.encode` does."""
    x = x.contiguous()
    exponent = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    rest = torch.empty((x.itemsize - 1, *x.shape), dtype=torch.uint8, device=x.device)
    _launch(encode_kernel, x.numel(), x.itemsize, x.view(WORD[x.itemsize]), exponent, rest)
    return exponent, rest


def decode(exponent: torch.Tensor, rest: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return x as `exponent_split.decode` does."""
    exponent, rest = exponent.contiguous(), rest.contiguous()
    out = torch.empty(exponent.shape, dtype=dtype, device=exponent.device)
    _launch(decode_kernel, out.numel(), dtype.itemsize, exponent, rest, out.view(WORD[dtype.itemsize]))
    return out


def _launch(kernel: object, n: int, itemsize: int, *tensors: torch.Tensor) -> None:
    """Run a kernel over n values on the device of its tensors."""
    if n == 0:
        return
    with torch.cuda.device_of(tensors[0]):
        kernel[(triton.cdiv(n, BLOCK),)](*tensors, n, itemsize, BLOCK)  # type: ignore[index]
