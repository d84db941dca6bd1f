"""Imports point down: the layers of the design, enforced on every import statement."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.architecture.source import PACKAGES, Module, modules

# Layer -> the layers of ours that it may import. The longest matching name decides which layer a module is in.
ALLOWED: dict[str, tuple[str, ...]] = {
    "kvstore.core": (),
    "kvstore.codecs": ("kvstore.core",),
    "kvstore.planners": ("kvstore.core",),
    "kvstore.store": ("kvstore.core", "kvstore.codecs"),
    "kvstore.simulate": ("kvstore.core", "kvstore.planners", "kvstore.store", "kvclient"),
    "kvstore.server": ("kvstore.core", "kvstore.codecs", "kvstore.planners", "kvstore.store", "kvclient", "kvproto"),
    "kvproto": (),
    "kvclient": ("kvstore.core", "kvproto"),
    "kvkernels": (),
    "kvworker": ("kvclient", "kvkernels", "kvproto", "kvstore"),
}
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "kvstore": ("torch", "triton", "transformers", "ray"),
    "kvclient": ("torch", "triton", "transformers", "ray", "redis"),
    "kvworker.route": ("torch", "triton", "transformers", "ray"),
    "kvstore.planners": ("asyncio", "time", "threading", "random"),
    "kvstore.store.evict": ("asyncio", "time", "threading", "random"),
    "kvstore.simulate": ("asyncio", "time", "threading"),
}
CORE_MAY_IMPORT = {"xxhash"}


def layer_of(name: str) -> str | None:
    """Return the layer that a dotted name lies in."""
    matches = [layer for layer in ALLOWED if name == layer or name.startswith(layer + ".")]
    return max(matches, key=len, default=None)


@pytest.mark.parametrize("module", modules(), ids=lambda m: m.name)
def test_a_module_imports_only_layers_below_its_own(module: Module) -> None:
    """An arrow that points up makes the lower layer untestable without the upper one."""
    own = layer_of(module.name)
    reached = {layer for name in module.imports() if (layer := layer_of(name)) and layer != own}
    allowed = ALLOWED[own] if own else tuple(ALLOWED)
    assert not [layer for layer in reached if not any(f"{layer}.".startswith(f"{below}.") for below in allowed)]


@pytest.mark.parametrize("module", modules(), ids=lambda m: m.name)
def test_a_module_stays_clear_of_what_its_layer_may_not_import(module: Module) -> None:
    """The store and the client run where no model runs; decisions take time and chance as input."""
    banned = {name for layer, names in FORBIDDEN.items() if f"{module.name}.".startswith(f"{layer}.") for name in names}
    assert not {name.split(".")[0] for name in module.imports()} & banned


def test_core_needs_the_standard_library_and_a_hash() -> None:
    """Whoever reads a chunk needs core and nothing that has to be compiled for a device."""
    used = {name.split(".")[0] for m in modules() if m.name.startswith("kvstore.core") for name in m.imports()}
    assert used - {"kvstore"} - set(sys.stdlib_module_names) <= CORE_MAY_IMPORT


def test_one_file_imports_transformers() -> None:
    """Another model library is another engine file and nothing else."""
    assert [m.name for m in modules() if any(n.split(".")[0] == "transformers" for n in m.imports())] == ["kvworker.engine.engine_hf"]


def test_only_the_pool_s_package_imports_ray() -> None:
    """Everything else runs without it."""
    using = [m.name for m in modules() if any(n.split(".")[0] == "ray" for n in m.imports())]
    assert using
    assert all(name.startswith("kvworker.ray.") for name in using)


@pytest.mark.parametrize("package", sorted(set(PACKAGES) - {"kvworker", "kvkernels"}))
def test_importing_a_light_package_loads_nothing_heavy(package: str) -> None:
    """Indirect imports count too: a RAG backend must not pay for torch."""
    code = f"import {package}, sys; print([m for m in ('torch', 'triton', 'transformers', 'ray', 'redis', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
