"""`larder forget SOURCE...`: take documents back, with everything that was ever known of them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvclient.cli import exits
from kvclient.cli.options import Session, common_options
from kvclient.cli.output import output_of
from kvstore.core.units import format_count

if TYPE_CHECKING:
    from kvclient.cli.plugins import Subparsers


def register(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = subparsers.add_parser("forget", parents=[common_options()], help="take documents back: chunks, tokens and earlier texts")
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="the name that the document was ingested under")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Forget them; 3 where none of them was known."""
    output = output_of(args)
    n_known = 0
    with Session(args) as session:
        for source in args.sources:
            n_chunks = session.larder.forget(source)
            n_known += n_chunks > 0
            output.record({"source": source, "n_chunks": n_chunks})
            output.text(f"{source} is forgotten, {format_count(n_chunks, 'chunk')}" if n_chunks else f"{source} was not known")
    return exits.OK if n_known else exits.NOT_FOUND
