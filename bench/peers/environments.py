"""One virtual environment per peer, with exactly the packages of its list and nothing resolved."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

LISTS = Path(__file__).parent
ROOT = LISTS.parents[1]
FOLDER = ROOT / ".peers"
INSTALL_TIMEOUT_S = 1800


class NotMeasuredError(Exception):
    """A peer has no numbers; the message says why, in one line."""


def python_of(name: str) -> Path:
    """Return the interpreter of a peer's environment, which is built if its list of packages is new or has changed."""
    folder = FOLDER / name
    wanted = (LISTS / f"{name}.txt").read_text(encoding="utf-8")
    stamp = folder / "installed.txt"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=False, symlinks=True)
        install(folder / "bin" / "python", LISTS / f"{name}.txt")
        stamp.write_text(wanted, encoding="utf-8")
    return folder / "bin" / "python"


def install(python: Path, packages: Path) -> None:
    """Install a complete list of packages with uv, or with pip where uv is not beside this interpreter."""
    uv = Path(sys.executable).with_name("uv")
    if uv.exists():
        command = [str(uv), "pip", "install", "--quiet", "--python", str(python)]
    else:
        command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    # uv does not read pip's settings: wheels that pip is configured to see are named to it here
    environment = os.environ | {"UV_FIND_LINKS": os.environ.get("PIP_FIND_LINKS", "")}
    run([*command, "--no-deps", "-r", str(packages)], environment, INSTALL_TIMEOUT_S)


def run(command: list[str], environment: dict[str, str], timeout_s: float) -> str:
    """Return what a command printed; raise `NotMeasuredError` with its last words if it fails or is too slow.

    The command leads a process group of its own, which is ended as a whole when its time is over.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            out, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            raise NotMeasuredError(f"it had not finished after {timeout_s:.0f} s") from None
    if process.returncode:
        raise NotMeasuredError(last_words(errors) or f"it ended with status {process.returncode} and said nothing")
    return out


def last_words(errors: str) -> str:
    """Return the last line of an error output, without the path of this checkout."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return lines[-1].replace(f"{ROOT}/", "").replace("|", "/") if lines else ""
