"""The client in a fresh environment that holds its base dependencies only, as a RAG backend installs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.fake_server import TOKEN, FakeServer

ROOT = Path(__file__).parents[2]
BASE = {"grpcio", "kv-larder", "numpy", "protobuf", "typing-extensions", "xxhash"}  # typing-extensions comes with grpcio
HEAVY = ("torch", "triton", "transformers", "ray", "redis", "rich", "zstandard", "grpc_health")
CHECKS = f"""
from importlib.util import find_spec
assert not [name for name in {HEAVY!r} if find_spec(name)]
from kvclient import Larder
with Larder() as larder:
    [passage] = larder.passages(limit=1)
    [(k, v)] = larder.chunks([passage.id])[0].to_numpy()
    print(k.shape, v.dtype)
"""


@pytest.fixture(scope="module")
def light_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of a new environment into which the project was installed without extras."""
    folder = tmp_path_factory.mktemp("light")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    command = [*_installer(python), "--quiet", "-c", str(ROOT / "constraints.txt"), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, env=_with_links())
    assert done.returncode == 0, done.stderr
    return python


def _installer(python: Path) -> list[str]:
    """Return the command that installs into another environment: uv where there is one, else pip."""
    uv = Path(sys.executable).with_name("uv")
    return (
        [str(uv), "pip", "install", "--python", str(python)]
        if uv.exists()
        else [sys.executable, "-m", "pip", "--python", str(python), "install"]
    )


def _with_links() -> dict[str, str]:
    """Return the environment for an installer: uv reads another variable than pip for the folder of local packages."""
    return {**os.environ, "UV_FIND_LINKS": os.environ.get("UV_FIND_LINKS", os.environ.get("PIP_FIND_LINKS", ""))}


def run(python: Path, *arguments: str, server: FakeServer) -> str:
    """Run the interpreter away from the source tree, against a server; return what it prints."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(python.parent), "LARDER_ADDRESS": server.address, "LARDER_TOKEN": TOKEN}
    done = subprocess.run([python, *arguments], capture_output=True, text=True, cwd=python.parent, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_environment_holds_the_base_dependencies_only(light_python: Path, server: FakeServer) -> None:
    """Nothing heavier comes along, not even indirectly."""
    code = "from importlib.metadata import distributions; print(*{d.name.lower().replace('_', '-') for d in distributions()})"
    assert set(run(light_python, "-c", code, server=server).split()) == BASE


def test_the_ten_line_example_runs_there(light_python: Path, server: FakeServer) -> None:
    """It prints the answer as it comes, then the report."""
    out = run(light_python, str(ROOT / "examples" / "ten_lines.py"), server=server)
    assert out.startswith("marble")
    assert "notes/harbour.txt#0: load 512 B from memory" in out


def test_raw_chunks_decode_to_numpy_there(light_python: Path, server: FakeServer) -> None:
    """For an engine of one's own."""
    server.add_passage("notes.txt", 0, "one two three")
    assert run(light_python, "-c", CHECKS, server=server).strip() == "(2, 1, 3, 4) float32"


def test_the_command_line_works_there_for_programs_and_names_the_extra_to_people(light_python: Path, server: FakeServer) -> None:
    """Tables need rich; --json does not."""
    server.add_passage("notes.txt", 0, "one two three")
    assert '"kind": "passage"' in run(light_python, "-m", "kvclient.cli.main", "ls", "--json", server=server)
    with pytest.raises(AssertionError, match=r"kv-larder\[cli\]"):
        run(light_python, "-m", "kvclient.cli.main", "ls", server=server)
