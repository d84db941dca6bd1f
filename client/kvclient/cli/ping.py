"""`larder ping`: whether the server serves, and how long it takes to say so."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvclient.cli import exits
from kvclient.cli.options import Session, common_options
from kvclient.cli.output import output_of

if TYPE_CHECKING:
    from kvclient.cli.plugins import Subparsers


def register(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = subparsers.add_parser("ping", parents=[common_options(5.0)], help="check that the server serves")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Ask for the server's health twice: the first call connects, the second is timed."""
    output = output_of(args)
    with Session(args) as session:
        session.larder.ping()
        seconds = session.larder.ping()
    output.record({"address": session.larder.address, "seconds": seconds})
    output.text(f"{session.larder.address} serves; {1000 * seconds:.1f} ms")
    return exits.OK
