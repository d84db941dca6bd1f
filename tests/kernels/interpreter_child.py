"""Run operators on Triton's interpreter for a parent process that talks over stdin and stdout.

The interpreter replaces `triton.jit` for a whole process, triton's own library included, so it lives in a process of its own, which the
parent starts with TRITON_INTERPRET=1.
A message is its length (8 bytes, little-endian) and a torch.save of [operator, function, arguments]; the answer has the same frame
and holds the result and the arguments, which the operator may have written to, or the text of an error.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO
from unittest.mock import patch

import torch

from kvkernels import backend


def send(stream: BinaryIO, message: object) -> None:
    """Write one frame."""
    body = io.BytesIO()
    torch.save(message, body)
    stream.write(len(body.getvalue()).to_bytes(8, "little") + body.getvalue())
    stream.flush()


def receive(stream: BinaryIO) -> list[object] | None:
    """Read one frame; None at the end of the stream."""
    head = stream.read(8)
    return torch.load(io.BytesIO(stream.read(int.from_bytes(head, "little"))), weights_only=True) if head else None


@contextmanager
def poisoned_outputs() -> Iterator[None]:
    """Fill what torch.empty and torch.empty_like return with NaN, integers with their largest value."""

    def poisoned(new: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def empty(*args: object, **kwargs: object) -> torch.Tensor:
            x = new(*args, **kwargs)
            return x.fill_(float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).max)

        return empty

    with patch.object(torch, "empty", poisoned(torch.empty)), patch.object(torch, "empty_like", poisoned(torch.empty_like)):
        yield


def run(operator: str, function: str, *args: object) -> list[object]:
    """Call a public function of an operator, with its references out of reach."""
    module = importlib.import_module(f"kvkernels.{operator}")
    for name in [name for name in vars(module) if name.startswith("reference_")]:
        delattr(module, name)
    return [getattr(module, function)(*args), list(args)]


def main() -> None:
    """Answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a stray print must not land between frames
    torch.set_num_threads(1)
    backend.runs_triton = lambda x: True
    while message := receive(sys.stdin.buffer):
        try:
            with poisoned_outputs():
                answer = run(*message)
        except Exception:
            answer = traceback.format_exc()
        send(answers, answer)


if __name__ == "__main__":
    main()
