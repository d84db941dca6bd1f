"""`larder stats`: the tiers' use and the store's counters."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvclient.cli import exits
from kvclient.cli.options import Session, common_options
from kvclient.cli.output import Number, output_of
from kvstore.core.units import format_nbytes

if TYPE_CHECKING:
    from kvclient.cli.plugins import Subparsers

TIERS: dict[str, Callable[[Any], object]] = {
    "tier": lambda r: r["name"],
    "used": lambda r: Number(format_nbytes(r["used_bytes"])),
    "capacity": lambda r: Number(format_nbytes(r["capacity_bytes"])) if r["capacity_bytes"] else "unbounded",
    "chunks": lambda r: r["entries"],
    "state": lambda r: "available" if r["is_available"] else "DOWN",
    "survives a restart": lambda r: "yes" if r["is_durable"] else "no",
}
COUNTERS: dict[str, Callable[[Any], object]] = {"counter": lambda r: r["name"], "value": lambda r: Number(f"{r['value']:,.10g}")}


def register(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = subparsers.add_parser("stats", parents=[common_options()], help="show tiers and counters")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show them."""
    output = output_of(args)
    with Session(args) as session:
        stats = session.store.stats()
    output.rows([{"kind": "tier", **vars(tier)} for tier in stats.tiers], TIERS)
    output.text("")
    output.rows([{"kind": "counter", "name": name, "value": stats.counters[name]} for name in sorted(stats.counters)], COUNTERS)
    return exits.OK
