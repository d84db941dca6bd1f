"""Finding a method by its file name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore.core.discovery import find, known_names
from kvstore.core.errors import UnsupportedError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield the name of a package with two methods, a module that is none, and a private one that fails on import."""
    root = tmp_path / "discovered_methods"
    root.mkdir()
    (root / "__init__.py").touch()
    for name, title in (("plain", "Plain"), ("fancy", "Fancy")):
        (root / f"{name}.py").write_text(f"class Options:\n    depth = 1\n\nclass {title}:\n    name = {name!r}\n")
    (root / "records.py").write_text("from discovered_methods.plain import Plain\n")
    (root / "_private.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield root.name
    for module in [m for m in sys.modules if m.partition(".")[0] == root.name]:
        del sys.modules[module]


def test_the_class_that_bears_the_name_of_its_file_is_found(package: str) -> None:
    """Other classes may stand in the file beside it."""
    assert find(package, "fancy").__name__ == "Fancy"


def test_a_module_that_only_imports_a_method_is_not_a_method(package: str) -> None:
    """Otherwise shared records would appear among the methods."""
    assert known_names(package) == ["fancy", "plain"]


def test_an_unknown_name_is_refused_with_the_known_ones(package: str) -> None:
    """The message is what a person needs to correct a configuration."""
    with pytest.raises(UnsupportedError, match=r"'plane' is not one of discovered_methods; known are fancy, plain"):
        find(package, "plane")


@pytest.mark.parametrize("name", ["", "_private", "plain.Plain", "..os", "os", "records"])
def test_nothing_outside_the_public_modules_of_the_package_is_imported(package: str, name: str) -> None:
    """The name may come from a stored chunk; `_private` raises on import."""
    with pytest.raises(UnsupportedError):
        find(package, name)
