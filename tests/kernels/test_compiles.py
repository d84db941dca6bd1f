"""Every kernel compiles to machine code for the GPUs that are served, which needs no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(480)  # 50 s of compiling on a core of its own, several times that beside other work
RUNNER = Path(__file__).with_name("compile_kernels.py")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Compile everything in one process, where triton is not on its interpreter."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}  # nothing that was compiled before counts
    environment.pop("TRITON_INTERPRET", None)
    run = subprocess.run([sys.executable, str(RUNNER)], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_every_kernel_compiles_in_every_dtype(outcomes: list[dict[str, Any]], capability: int) -> None:
    """The interpreter accepts what the compiler refuses (a method on a constant, a shape that is no power of two)."""
    cases = [case for case in outcomes if case["capability"] == capability]
    assert cases
    assert [case for case in cases if case["error"] or not case["nbytes"]] == []
