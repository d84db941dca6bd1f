"""Triton is an extra: without it every operator runs its torch reference."""

from __future__ import annotations

import subprocess
import sys

import torch

from kvkernels import backend

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # importing it now raises ImportError
import torch
from kvkernels import backend, exponent_split, int8, kivi, rotate_scatter
x = torch.arange(64.0).view(1, 2, 32)
int8.decode(*int8.encode(x), x.dtype)
kivi.decode(*kivi.encode(x, 4, 32, "channel"), x.shape, 4, 32, "channel", x.dtype)
exponent_split.decode(*exponent_split.encode(x), x.dtype)
rotate_scatter.write(x, torch.ones(2, 32), torch.zeros(2, 32), torch.arange(2), x.clone())
assert not backend.has_triton()
"""


def test_operators_on_cpu_need_no_triton() -> None:
    """It takes a gigabyte of disk and a second to import; a CPU worker pays neither."""
    run = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_a_cpu_tensor_takes_the_reference() -> None:
    """Whether triton is installed or not."""
    assert not backend.runs_triton(torch.zeros(1))
