"""Methods are found by file name: `find(package, "first_k")` is the class in `package/first_k.py` whose `name` is "first_k"."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module

from kvstore.core.errors import UnsupportedError


def find(package: str, name: str) -> type:
    """Return the class that module `package.name` defines under its own name; anything else raises UnsupportedError.

    Only a module that lies directly in the package is imported, so `name` may come from a configuration or from a stored chunk. The
    other modules of the package are imported only to list the known names in the error.
    """
    if name in _module_names(package) and (found := _class_of(package, name)):
        return found
    raise UnsupportedError(f"{name!r} is not one of {package}; known are {', '.join(known_names(package)) or 'none'}")


def known_names(package: str) -> list[str]:
    """Return the names that `find` accepts for the package, sorted. Imports every module of it."""
    return sorted(name for name in _module_names(package) if _class_of(package, name))


@cache
def _module_names(package: str) -> tuple[str, ...]:
    """Return the public modules directly in the package, as its folder was when it was first asked about."""
    modules = pkgutil.iter_modules(import_module(package).__path__)
    return tuple(module.name for module in modules if not module.ispkg and not module.name.startswith("_"))


def _class_of(package: str, name: str) -> type | None:
    """Return the class defined in the module whose `name` is the module's, or None for a module that holds no method."""
    module = import_module(f"{package}.{name}")
    classes = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__]
    return next((found for found in classes if getattr(found, "name", None) == name), None)
