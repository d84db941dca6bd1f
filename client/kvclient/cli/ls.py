"""`larder ls`: the stored passages and chunks."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from kvclient.cli import exits
from kvclient.cli.options import Session, common_options, count
from kvclient.cli.output import Number, Output, output_of
from kvstore.core.errors import UnsupportedError
from kvstore.core.units import format_count, format_nbytes

if TYPE_CHECKING:
    from kvclient.cli.plugins import Subparsers

PASSAGES: dict[str, Callable[[Any], object]] = {
    "id": lambda r: r["id"][:12],
    "name": lambda r: f"{r['source']}#{r['index']}",
    "tokens": lambda r: r["n_tokens"],
    "begins": lambda r: r["preview"],
}
CHUNKS: dict[str, Callable[[Any], object]] = {
    "content": lambda r: r["content"][:12],
    "variant": lambda r: r["variant"][:8],
    "kind": lambda r: r["chunk_kind"],
    "tokens": lambda r: r["n_tokens"],
    "size": lambda r: Number(format_nbytes(r["nbytes"])),
    "codec": lambda r: r["codec"],
    "tiers": lambda r: " ".join(r["tiers"]),
    "source": lambda r: r["source"],
}


def register(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = subparsers.add_parser("ls", parents=[common_options()], help="list passages and stored chunks")
    parser.add_argument("what", nargs="?", choices=("all", "passages", "chunks"), default="all")
    parser.add_argument("--source", default="", help="only those of one document")
    parser.add_argument("--limit", type=count, default=1000, metavar="N", help="most rows of each (default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """List what is there; a store without a worker has chunks only."""
    output = output_of(args)
    with Session(args) as session:
        if args.what != "chunks":
            list_passages(session, args, output)
        if args.what != "passages":
            rows = [chunk_record(vars(e)) for e in session.store.entries(args.limit) if args.source in ("", e.source)]
            output.rows(rows, CHUNKS)
            output.text(f"{format_count(len(rows), 'chunk')}, {format_nbytes(sum(r['nbytes'] for r in rows))}")
    return exits.OK


def list_passages(session: Session, args: argparse.Namespace, output: Output) -> None:
    """List the worker's passages."""
    try:
        passages = session.larder.passages(args.source, limit=args.limit)
    except UnsupportedError:
        if args.what == "passages":
            raise
        return
    output.rows([{"kind": "passage", **asdict(passage)} for passage in passages], PASSAGES)
    output.text(f"{format_count(len(passages), 'passage')}\n")


def chunk_record(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a listed chunk as it is printed."""
    key, rest = entry["key"], {k: v for k, v in entry.items() if k not in ("key", "kind")}
    digests = {name: getattr(key, name).hex() for name in ("namespace", "content", "variant")}
    return {"kind": "chunk", **digests, "chunk_kind": entry["kind"], **rest}
