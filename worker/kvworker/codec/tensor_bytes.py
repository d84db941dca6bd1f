"""Move between tensors and the bytes of stored fields, without a copy where there is a choice."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import torch

from kvstore.core.blob import Buffer

FIELD_DTYPES: dict[str, torch.dtype] = {
    "uint8": torch.uint8,
    "int8": torch.int8,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "int32": torch.int32,
    "int64": torch.int64,
}


def bytes_of(x: torch.Tensor) -> memoryview:
    """Return the little-endian bytes of a tensor in row-major order; a view when x is contiguous and on the CPU."""
    return x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def tensor_of(data: Buffer, dtype: str, shape: tuple[int, ...], offset: int = 0) -> torch.Tensor:
    """Return a tensor over the bytes of `data` from `offset` on, which has all that `shape` needs, at least one.

    The tensor aliases `data` and keeps it alive; whoever may overwrite the bytes must wait until the tensor is gone. Never write to
    the tensor: its bytes may be read-only memory.
    """
    return torch.frombuffer(unguarded(data), dtype=FIELD_DTYPES[dtype], count=math.prod(shape), offset=offset).view(shape)


def unguarded(data: Buffer) -> Buffer:
    """Return a buffer over the same bytes that does not say it is read-only: torch warns about such buffers and has no other way."""
    view = memoryview(data)
    if not view.readonly or not view.nbytes:
        return data
    address = np.frombuffer(view, np.uint8).__array_interface__["data"][0]
    twin = (ctypes.c_char * view.nbytes).from_address(address)
    twin.owner = view  # type: ignore[attr-defined]  # keeps the bytes alive as long as the tensor holds the twin
    return twin  # type: ignore[return-value]
