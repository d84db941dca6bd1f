"""The project's own source files, parsed once for the architecture tests."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "kvstore": ROOT / "kvstore",
    "kvclient": ROOT / "client" / "kvclient",
    "kvworker": ROOT / "worker" / "kvworker",
    "kvkernels": ROOT / "kernels" / "kvkernels",
    "kvproto": ROOT / "proto" / "kvproto",
}


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name, path, text and syntax tree."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    def imports(self) -> set[str]:
        """Return every module named by an import statement, those inside functions included."""
        found: set[str] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        return found


@cache
def modules() -> tuple[Module, ...]:
    """Return all source files that people write; generated code is left out."""
    found = []
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            if "_pb2" not in path.name:
                dotted = ".".join([package, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__")
                text = path.read_text(encoding="utf-8")
                found.append(Module(dotted, path, text, ast.parse(text)))
    return tuple(found)
