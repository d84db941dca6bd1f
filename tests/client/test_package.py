"""The package as a whole: what it exports, what it loads, and that its two clients are one."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import kvclient
from kvclient import Retry
from kvclient.attempts import Attempts
from kvclient.retry import Deadline
from kvstore.core import errors
from kvstore.core.errors import CapacityError

CLIENT = Path(__file__).parents[2] / "client"


def test_the_blocking_client_is_what_the_generator_writes(tmp_path: Path) -> None:
    """Run `python client/generate_sync.py` where this fails."""
    subprocess.run([sys.executable, CLIENT / "generate_sync.py", tmp_path], check=True)
    written = {path.name: path.read_text() for path in tmp_path.glob("*.py")}
    assert written == {path.name: path.read_text() for path in (CLIENT / "kvclient" / "_sync").glob("*.py")}


def test_no_trace_of_asyncio_is_left_in_the_blocking_client() -> None:
    """A name that the generator misses would fail only where it is used."""
    text = "".join(path.read_text() for path in (CLIENT / "kvclient" / "_sync").glob("*.py"))
    code = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    assert not [word for word in ("await", "async ", "asyncio", "Async", "aclose", "aio") if word in code]


def test_every_exported_name_can_be_imported() -> None:
    """The table of lazy names has no typing error."""
    assert sorted(kvclient.__all__) == dir(kvclient)
    assert all(getattr(kvclient, name).__name__ == name for name in kvclient.__all__)


@pytest.mark.parametrize("package", ["kvclient", "kvkernels", "kvproto", "kvstore", "kvworker"])
def test_the_types_of_every_package_are_for_its_users_too(package: str) -> None:
    """Without the marker of PEP 561 a type checker takes whatever comes from a package for Any."""
    [folder] = (find_spec(package) or pytest.fail(package)).submodule_search_locations or []
    assert (Path(folder) / "py.typed").exists()


def test_every_error_of_a_call_is_exported() -> None:
    """What one catches comes from where the client comes from; an extra that is missing, or a copy that was evicted, ends no call."""
    tree = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.KVError)}
    assert tree - {"EvictedError", "MissingExtraError"} <= set(kvclient.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As for any other module."""
    with pytest.raises(AttributeError, match="has no attribute 'Lardr'"):
        _ = kvclient.Lardr


@pytest.mark.parametrize("code", ["import kvclient", "from kvclient import Larder, AsyncLarder", "import kvclient.cli.main"])
def test_importing_the_client_loads_nothing_heavy(code: str) -> None:
    """Not even numpy: only decoding needs it."""
    heavy = ("numpy", "torch", "transformers", "ray", "redis", "rich")
    script = f"{code}\nimport sys\nprint([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_no_attempt_begins_that_the_deadline_would_cut_off() -> None:
    """The failure at hand says more than a deadline error would."""
    attempts = Attempts(Retry(first_pause_s=8.0, longest_pause_s=8.0, seed=0), Deadline.after(3.0, clock=lambda: 0.0))
    failure = CapacityError("busy")
    with pytest.raises(CapacityError) as raised:
        attempts.pause_s(failure)
    assert raised.value is failure


def test_pauses_grow_from_attempt_to_attempt() -> None:
    """Between half of and the whole of twice the one before."""
    attempts = Attempts(Retry(first_pause_s=1.0, longest_pause_s=64.0, seed=0), Deadline.after(1000.0, clock=lambda: 0.0))
    pauses = [attempts.pause_s(CapacityError("busy")) for _ in range(3)]
    assert all(2**n / 2 <= pause <= 2**n for n, pause in enumerate(pauses))
