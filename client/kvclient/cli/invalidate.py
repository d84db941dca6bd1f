"""`larder invalidate tenant|model|source [VALUE]`: make everything in a scope a miss at once."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvclient.cli import exits
from kvclient.cli.options import Session, common_options
from kvclient.cli.output import output_of
from kvstore.core.api import Scope
from kvstore.core.errors import InvalidInputError

if TYPE_CHECKING:
    from kvclient.cli.plugins import Subparsers


def register(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = subparsers.add_parser("invalidate", parents=[common_options()], help="make a model's, a document's or all chunks a miss")
    parser.add_argument("kind", choices=("tenant", "model", "source"))
    parser.add_argument("value", nargs="?", default="", help="the model's namespace in hex, or the document's name; none for the tenant")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Invalidate the scope."""
    if (args.kind == "tenant") is bool(args.value):
        wrong = "the tenant is your own; leave out the value" if args.value else f"say which {args.kind}"
        raise InvalidInputError(f"invalidate {args.kind}: {wrong}")
    output = output_of(args)
    with Session(args) as session:
        epoch = session.store.invalidate(Scope(args.kind, args.value))
    output.record({"kind": args.kind, "value": args.value, "epoch": epoch})
    output.text(f"everything of {args.kind} {args.value} is a miss from now on (epoch {epoch})".replace("  ", " "))
    return exits.OK
