"""What `larder doctor` looks at on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from kvstore.core.tokens import default_data_dir
from kvstore.core.units import format_nbytes

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "cli": ("rich",),
    "store": ("grpc_health", "grpc_reflection", "redis", "zstandard"),
    "worker": ("torch", "transformers", "safetensors", "tokenizers"),
    "kernels": ("triton",),
}
MIN_PYTHON = (3, 11)
MIN_FREE_NBYTES = 1 << 30
RELEASED_S = 1_767_225_600  # 2026-01-01: no clock is right that is before this version
_GPU_CODE = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
_GPU_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Finding:
    """One check's result: state "ok", "warn" (something is missing that may not be needed) or "fail", and what to do."""

    check: str
    state: str
    found: str
    advice: str = ""


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Check the interpreter."""
    found = ".".join(map(str, version))
    if version[:2] < MIN_PYTHON:
        return Finding("python", "fail", found, f"install Python {'.'.join(map(str, MIN_PYTHON))} or later")
    return Finding("python", "ok", found)


def check_extras() -> Iterator[Finding]:
    """Check which extras are installed; none of them is needed by a client."""
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if find_spec(module) is None]
        if missing:
            yield Finding(f"extra {extra}", "warn", f"without {', '.join(missing)}", f"if needed here: pip install 'kv-larder[{extra}]'")
        else:
            yield Finding(f"extra {extra}", "ok", "installed")


def check_disk(folder: Path | None = None) -> Finding:
    """Check the space where a store of this machine keeps its files."""
    place = folder or default_data_dir(os.environ)
    existing = next(path for path in (place, *place.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < MIN_FREE_NBYTES:
        return Finding("disk", "warn", f"{format_nbytes(free)} free at {existing}", "free some, or move the store's data_dir")
    return Finding("disk", "ok", f"{format_nbytes(free)} free at {existing}")


def check_clock(now_s: float | None = None) -> Finding:
    """Check that the clock is not behind this version's release: certificates and leases depend on it."""
    found = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time.time() if now_s is None else now_s)) + " UTC"
    if (time.time() if now_s is None else now_s) < RELEASED_S:
        return Finding("clock", "fail", found, "set the clock, or turn on time synchronisation")
    return Finding("clock", "ok", found)


def check_gpu() -> Finding:
    """Check for a GPU where torch is installed; torch is imported by another process, so that this one stays light."""
    if find_spec("torch") is None:
        return Finding("gpu", "ok", "not looked for: torch is not installed")
    try:
        done = subprocess.run([sys.executable, "-c", _GPU_CODE], capture_output=True, text=True, timeout=_GPU_TIMEOUT_S, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        return Finding("gpu", "warn", f"torch can't be asked: {type(error).__name__}", "import torch by hand and read the error")
    name = done.stdout.strip()
    return Finding("gpu", "ok", name) if name else Finding("gpu", "ok", "none; the worker runs on the CPU")
