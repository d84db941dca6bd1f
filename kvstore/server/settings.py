"""Nested mappings to frozen dataclasses and back to TOML, with every unknown key refused."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

from kvstore.core.errors import ConfigError
from kvstore.core.units import parse_nbytes

SIZE: Mapping[str, str] = {"unit": "bytes"}  # metadata of a field that may be written "512MiB"
Tree = dict[str, Any]
T = TypeVar("T")
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def build(cls: type[T], tree: Mapping[str, Any], path: str = "") -> T:
    """Return an instance of a config dataclass; raises ConfigError that names the place, for an unknown key with the known ones."""
    hints, known = get_type_hints(cls), {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in tree.items():
        where = f"{path}.{name}" if path else name
        if name not in known:
            raise ConfigError(_unknown(where, name, list(known)))
        values[name] = _convert(hints[name], known[name], value, where)
    return cls(**values)


def overlay(tree: Tree, dotted: str, value: object) -> None:
    """Set "a.b.c" in a tree."""
    place(tree, dotted.split("."), value)


def place(tree: Tree, path: Sequence[str], value: object) -> None:
    """Set the value at a path, making tables on the way; a value where a table is needed raises ConfigError."""
    for depth, name in enumerate(path[:-1], 1):
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{'.'.join(path[:depth])} is a value, not a table, so {'.'.join(path)} can't be set")
    tree[path[-1]] = value


def to_toml(config: object, path: str = "") -> str:
    """Write a config dataclass as TOML that reads back the same, except that passwords in a URL become ***."""
    tables, lines = [], []
    for f in fields(config):  # type: ignore[arg-type]
        value = getattr(config, f.name)
        if is_dataclass(value):
            tables.append(to_toml(value, f"{path}.{f.name}" if path else f.name))
        else:
            lines.append(f"{f.name} = {_spell(value, f)}")
    head = [f"[{path}]"] if path and lines else []
    return "\n\n".join(filter(None, ["\n".join(head + lines), *tables]))


def _unknown(where: str, name: str, known: list[str]) -> str:
    """Say that a key is unknown, which one may be meant, and which there are."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else "."
    return f"configuration key {where} is not known{hint} Known here: {', '.join(sorted(known))}"


def _convert(kind: type[Any], f: Field[Any], value: Any, where: str) -> Any:
    """Return the value as the field's type; text from the environment is read, anything else must fit already."""
    if is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ConfigError(f"configuration key {where} is a table, got {value!r}")
        return build(kind, value, where)
    try:
        if f.metadata == SIZE and not isinstance(value, bool):
            return parse_nbytes(value)
        return _READERS[kind](value)
    except ConfigError as error:
        raise ConfigError(f"configuration key {where}: {error}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"configuration key {where}: {value!r} is not {_KINDS[kind]}") from error


def _read_bool(value: Any) -> bool:
    """Read a boolean."""
    return value if isinstance(value, bool) else _BOOLEANS[str(value).lower()]


def _read_int(value: Any) -> int:
    """Read an integer, which is never guessed from another number."""
    if isinstance(value, bool | float):
        raise TypeError
    return int(value)


def _read_float(value: Any) -> float:
    """Read a finite number."""
    number = math.nan if isinstance(value, bool) else float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _read_text(value: Any) -> str:
    """Read a string."""
    if not isinstance(value, str):
        raise TypeError
    return value


_READERS = {bool: _read_bool, int: _read_int, float: _read_float, str: _read_text}
_KINDS = {bool: "true or false", int: "an integer", float: "a finite number", str: "a string"}


def _spell(value: Any, f: Field[Any]) -> str:
    """Write one TOML value."""
    if f.metadata == SIZE and value and value % (1 << 20) == 0:
        return f'"{value >> 20}MiB"'
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(_without_passwords(value)) if isinstance(value, str) else repr(value)


def _without_passwords(text: str) -> str:
    """Return a text whose passwords of URLs, in front of the host or in the query, are ***."""
    return re.sub(r"([?&][a-z_]*password=)[^&]*", r"\1***", re.sub(r"(://[^/@]*:)[^/]*@", r"\1***@", text))
