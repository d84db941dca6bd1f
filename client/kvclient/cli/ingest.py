"""`larder ingest PATH...`: read documents and store their passages."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from kvclient import IngestedPassage, Larder
from kvclient.cli import exits
from kvclient.cli.options import Session, common_options
from kvclient.cli.output import Number, output_of
from kvclient.cli.progress import progress
from kvclient.cli.split import MODES, find_files, passages_of, read_text
from kvclient.requests import INGEST_AS
from kvstore.core.errors import InvalidInputError
from kvstore.core.units import format_count, format_nbytes

if TYPE_CHECKING:
    from kvclient.cli.plugins import Subparsers

COLUMNS: dict[str, Callable[[Any], object]] = {
    "id": lambda r: r["id"][:12],
    "name": lambda r: f"{r['source']}#{r['index']}",
    "tokens": lambda r: r["n_tokens"],
    "computed": lambda r: "yes" if r["computed"] else "stored before",
    "size": lambda r: Number(format_nbytes(r["nbytes"])),
    "begins": lambda r: r["preview"],
}


def register(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = subparsers.add_parser("ingest", parents=[common_options(600.0)], help="read documents and store their passages")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a text file, or a folder whose .txt and .md files are read")
    parser.add_argument("--passages", choices=MODES, default=MODES[0], help="what a passage is (default: %(default)s, cut at blank lines)")
    parser.add_argument(
        "--read-as",
        choices=INGEST_AS,
        default=INGEST_AS[0],
        help="read passages behind those before them in their document, alone, or both (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Ingest every file, one document each, named by its path."""
    output = output_of(args)
    documents = read_documents(args.paths, args.passages)
    rows: list[dict[str, Any]] = []
    with Session(args) as session, progress("ingesting", sum(map(len, documents.values()))) as advance:
        for source, passages in documents.items():
            for row in ingest(session.larder, source, passages, args.read_as, advance):
                rows.append(row)
                output.record(row)
    output.table(rows, COLUMNS)
    n_read = sum(r["tokens_read"] for r in rows)
    what = f"{format_count(len(rows), 'passage')} of {format_count(len(documents), 'document')}"
    output.text(f"{what}, {sum(r['computed'] for r in rows)} computed now ({format_count(n_read, 'token')} read)")
    return exits.OK


def read_documents(paths: list[str], mode: str) -> dict[str, list[str]]:
    """Return the passages of every file by its name; a file without text raises InvalidInputError."""
    documents = {}
    for path in find_files(paths):
        documents[path.as_posix()] = passages_of(read_text(path), mode)
        if not documents[path.as_posix()]:
            raise InvalidInputError(f"{path} holds no text")
    return documents


def ingest(larder: Larder, source: str, passages: list[str], read_as: str, advance: Callable[[int], None]) -> list[dict[str, Any]]:
    """Ingest one document; return a record per passage."""
    rows = []
    for row in larder.ingest_each(source, passages, read_as):
        advance(1)
        rows.append(to_record(row))
    return rows


def to_record(row: IngestedPassage) -> dict[str, Any]:
    """Return what became of a passage as it is printed."""
    return {**asdict(row.passage), "computed": row.is_computed, "nbytes": row.nbytes, "tokens_read": row.tokens_read}
