"""Two ways to run a Triton kernel: the interpreter in a child process, everywhere, and a CUDA device where there is one."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

Run = Callable[..., Any]
CHILD = Path(__file__).with_name("interpreter_child.py")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def child_module() -> Any:
    """Load the child's functions into this process."""
    spec = importlib.util.spec_from_file_location("interpreter_child", CHILD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def interpret() -> Iterator[Run]:
    """Call an operator in the child: interpret(operator, function, *args) -> (result, args as the operator left them)."""
    frames = child_module()
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    with subprocess.Popen([sys.executable, str(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as child:

        def call(*message: object) -> Any:
            frames.send(child.stdin, list(message))
            answer = frames.receive(child.stdout)
            assert isinstance(answer, list), answer or "the interpreter process ended; its stderr says why"
            return answer

        yield call
        assert child.stdin is not None
        child.stdin.close()


def on_cuda(operator: str, function: str, *args: object) -> Any:
    """Call an operator with its tensors on the CUDA device."""
    moved = [_move(arg, "cuda") for arg in args]
    with child_module().poisoned_outputs():
        result = getattr(importlib.import_module(f"kvkernels.{operator}"), function)(*moved)
    return [_move(result, "cpu"), [_move(arg, "cpu") for arg in moved]]


@pytest.fixture(params=["interpreter", *(["cuda"] if torch.cuda.is_available() else [])])
def kernel(request: pytest.FixtureRequest) -> Run:
    """Run an operator's Triton kernel, in every way that this machine has, on outputs that are poisoned before."""
    return on_cuda if request.param == "cuda" else request.getfixturevalue("interpret")


def _move(x: object, device: str) -> object:
    """Move tensors, alone or in a tuple; a view keeps its strides."""
    if isinstance(x, tuple):
        return tuple(_move(part, device) for part in x)
    return x.to(device) if isinstance(x, torch.Tensor) else x
