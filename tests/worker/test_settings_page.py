"""The page of settings names every setting of every program, with its default."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from kvstore.server.config import StoreConfig
from kvstore.server.settings import to_toml
from kvworker.route.command import RouteConfig
from kvworker.serve.config import UpConfig, WorkerConfig

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
ROW = re.compile(r"^\| `([a-z_.]+)` \| `([^`]*)` \| (.+) \|$", re.MULTILINE)
OWN_ADDRESS = {"server.address"}  # each program has a port of its own; the row says which


def flat(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Return the values of nested tables by dotted key."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{path}{name}.") if isinstance(value, dict) else {path + name: value}
    return found


@pytest.mark.parametrize("config", [StoreConfig(), UpConfig(), WorkerConfig(), RouteConfig()], ids=lambda config: type(config).__name__)
def test_every_setting_is_on_the_page_with_its_default(config: object) -> None:
    """What is not documented is not found, and a default that moved misleads."""
    page = {key: tomllib.loads(f"x = {default}")["x"] for key, default, _ in ROW.findall(PAGE.read_text())}
    known = flat(tomllib.loads(to_toml(config)))
    assert {key: page.get(key) for key in known if key not in OWN_ADDRESS} == {k: v for k, v in known.items() if k not in OWN_ADDRESS}


def test_nothing_else_is_on_the_page() -> None:
    """A setting that is gone is refused by the programs."""
    known: set[str] = set().union(*(flat(tomllib.loads(to_toml(c))) for c in (StoreConfig(), WorkerConfig(), RouteConfig())))
    assert {key for key, _, _ in ROW.findall(PAGE.read_text())} == known
