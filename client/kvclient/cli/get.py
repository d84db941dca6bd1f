"""`larder get ID`: what a stored chunk says about itself, and its bytes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvclient.cli import exits
from kvclient.cli.names import find_keys
from kvclient.cli.options import Session, common_options
from kvclient.cli.output import Number, Output, output_of
from kvclient.cli.progress import progress
from kvstore.core.api import BlobReader
from kvstore.core.blob import build_blob, part_fields
from kvstore.core.errors import InvalidInputError, NotFoundError
from kvstore.core.key import ChunkKey
from kvstore.core.units import format_nbytes

if TYPE_CHECKING:
    from kvclient.cli.plugins import Subparsers

PARTS: dict[str, Callable[[Any], object]] = {
    "part": lambda r: r["group"],
    "layers": lambda r: len(r["layers"]),
    "kv heads": lambda r: r["kv_heads"],
    "k dim": lambda r: r["k_dim"],
    "v dim": lambda r: r["v_dim"],
    "fields": lambda r: " ".join(f["name"] for f in r["fields"]),
    "size": lambda r: Number(format_nbytes(r["nbytes"])),
}


def register(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = subparsers.add_parser("get", parents=[common_options(120.0)], help="show or save a stored chunk")
    parser.add_argument("id", help="8 hex digits or more of its id, or source#index")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the chunk's bytes to a file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show the manifest, and save the chunk where asked to."""
    output = output_of(args)
    if args.output:
        check_file(Path(args.output))
    with Session(args) as session:
        keys = find_keys(session, [args.id])
        if args.output and len(keys) > 1:
            raise InvalidInputError(f"{args.id} is stored in {len(keys)} variants; get the passage's own by source#index")
        for key in keys:
            show(session, key, args.output, output)
    return exits.OK


def check_file(file: Path) -> None:
    """Raise InvalidInputError where a file can't be written, before anything is fetched for it."""
    if file.is_dir() or not file.parent.is_dir():
        raise InvalidInputError(f"{file} can't be written: {'it is a folder' if file.is_dir() else f'there is no folder {file.parent}'}")


def show(session: Session, key: ChunkKey, file: str | None, output: Output) -> None:
    """Fetch one chunk and show its manifest; a miss raises NotFoundError with the store's reason."""
    reader = session.store.get(key)
    if reader is None:
        raise NotFoundError(f"chunk {key} is not in the store: {session.store.explain(key).hit.reason or 'a miss'}")
    try:
        manifest = reader.manifest
        record = {"tier": reader.tier, "nbytes": reader.nbytes, "variant": key.variant.hex(), **manifest.to_json()}
        output.text(f"chunk {key}: {record['kind']}, {manifest.n_tokens} tokens of {manifest.dtype}, codec {manifest.codec.label}")
        output.text(f"{format_nbytes(reader.nbytes)} in tier {reader.tier}, model {manifest.namespace.hex()[:16]}\n")
        output.record(record)
        output.table(record["parts"], PARTS)
        if file:
            Path(file).write_bytes(collect(reader))
            output.text(f"\nwrote {reader.nbytes} B to {file}")
    finally:
        reader.close()


def collect(reader: BlobReader) -> bytearray:
    """Read every part and return the whole chunk, byte for byte as it is stored."""
    payloads = []
    with progress("fetching", reader.nbytes) as advance:
        for index, part in enumerate(reader.manifest.parts):
            payloads.append(list(part_fields(part, reader.part(index)).values()))
            advance(part.nbytes)
    return build_blob(reader.manifest, payloads)
