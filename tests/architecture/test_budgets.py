"""Size budgets and forbidden names of the house style."""

from __future__ import annotations

import ast
import re

import pytest

from tests.architecture.source import Module, modules

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 35
VAGUE_NAME = re.compile(r"(Base|Manager|Handler|Helper|Utils|Impl)$|^(My|New)[A-Z]|V\d$")


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function without its docstring."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


@pytest.mark.parametrize("module", modules(), ids=lambda m: m.name)
def test_files_and_functions_stay_within_their_budgets(module: Module) -> None:
    """A file past the stop holds more than one idea."""
    functions = [n for n in ast.walk(module.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {f.name: code_lines(f) for f in functions if code_lines(f) > MAX_FUNCTION_LINES}
    assert not long
    assert module.text.count("\n") <= MAX_FILE_LINES


@pytest.mark.parametrize("module", modules(), ids=lambda m: m.name)
def test_classes_have_names_that_say_what_they_are(module: Module) -> None:
    """A vague name hides two ideas in one class."""
    assert not [n.name for n in ast.walk(module.tree) if isinstance(n, ast.ClassDef) and VAGUE_NAME.search(n.name)]


@pytest.mark.parametrize("module", modules(), ids=lambda m: m.name)
def test_every_module_and_public_name_says_what_it_is(module: Module) -> None:
    """The first line of a docstring is what a reader scans."""
    if module.path.name == "__init__.py" and not module.tree.body:
        return
    public = [
        n for n in module.tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef) and not n.name.startswith("_")
    ]
    missing = [n.name for n in public if not ast.get_docstring(n)]
    assert ast.get_docstring(module.tree)
    assert not missing
