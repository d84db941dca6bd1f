"""`larder rm ID...`: remove stored chunks from every tier; their passages stay known."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvclient.cli import exits
from kvclient.cli.names import find_keys
from kvclient.cli.options import Session, common_options
from kvclient.cli.output import output_of
from kvstore.core.units import format_count

if TYPE_CHECKING:
    from kvclient.cli.plugins import Subparsers


def register(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = subparsers.add_parser("rm", parents=[common_options()], help="remove stored chunks")
    parser.add_argument("ids", nargs="+", metavar="ID", help="8 hex digits or more of an id, or source#index")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Remove them in both readings; 3 where none of them was there."""
    output = output_of(args)
    with Session(args) as session:
        deleted = session.store.delete(find_keys(session, args.ids, ("auto", "alone")))
    output.record({"deleted": deleted})
    output.text(f"removed {format_count(deleted, 'chunk')}")
    return exits.OK if deleted else exits.NOT_FOUND
