"""Verbs of other packages, found through the entry point group "larder.commands"."""

from __future__ import annotations

import argparse
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from kvstore.core.errors import MissingExtraError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

GROUP = "larder.commands"
_EXTRAS = {"kvstore": "store", "kvworker": "worker"}  # the package of a verb -> the extra that brings what it imports


def register_plugins(subparsers: Subparsers) -> None:
    """Add the verbs of every entry point: a callable `register(subparsers)`, called once however many verbs name it.

    A verb whose module can't be imported is listed all the same, and says which extra it needs when it is run.
    """
    seen = set()
    for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name):
        if entry.value in seen:
            continue
        try:
            register = entry.load()
        except ImportError as error:
            _register_missing(subparsers, entry, error)
            continue
        seen.add(entry.value)
        register(subparsers)


def _register_missing(subparsers: Subparsers, entry: EntryPoint, error: ImportError) -> None:
    """List a verb that can't run here."""
    root = entry.module.partition(".")[0]
    extra = _EXTRAS.get(root)
    cure = f"pip install 'kv-larder[{extra}]'" if extra else f"install what {root} needs"
    # With no character that begins an option, whatever follows the verb is an argument and is taken.
    parser = subparsers.add_parser(entry.name, help=f"not installed here: {cure}", add_help=False, prefix_chars="\0")
    parser.add_argument("ignored", nargs="*")

    def run(args: argparse.Namespace) -> int:
        raise MissingExtraError(f"{entry.name} needs {error.name or error}, which is not installed: {cure}") from error

    parser.set_defaults(run=run)
