"""`larder explain [REQUEST or ID]`: why an answer was given as it was, or why a chunk is or is not served."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from kvclient.cli import exits
from kvclient.cli.names import find_keys
from kvclient.cli.options import Session, common_options
from kvclient.cli.output import Output, output_of
from kvclient.cli.reports import show_report
from kvstore.core.api import Status
from kvstore.core.errors import InvalidInputError, KVError, NotFoundError, UnsupportedError
from kvstore.core.key import ChunkKey

if TYPE_CHECKING:
    from kvclient.cli.plugins import Subparsers


def register(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = subparsers.add_parser("explain", parents=[common_options()], help="say why: for a request, or for a chunk")
    parser.add_argument("subject", nargs="?", default="", metavar="REQUEST|ID", help="default: the latest request")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Explain the request of that id; where there is none, the chunk."""
    output = output_of(args)
    with Session(args) as session:
        try:
            explain_request(session, args.subject, output)
            return exits.OK
        except (NotFoundError, UnsupportedError) as error:
            if not args.subject:
                raise
            no_request = error
        statuses = [explain_chunk(session, key, output) for key in _find_chunks(session, args.subject, no_request)]
    return exits.OK if Status.READY in statuses else exits.NOT_FOUND


def explain_request(session: Session, request_id: str, output: Output) -> None:
    """Show what was decided for a request."""
    explanation = session.larder.explain(request_id)
    output.record({"kind": "request", **asdict(explanation)})
    for line in explanation.lines:
        output.text(line)
    if not explanation.lines:
        show_report(explanation.report, output)


def _find_chunks(session: Session, subject: str, no_request: KVError) -> list[ChunkKey]:
    """Return the chunks of a name that is no request's; NotFoundError says what was looked for, as a request and as a chunk."""
    try:
        return find_keys(session, [subject])
    except (NotFoundError, InvalidInputError) as error:
        raise NotFoundError(f"{no_request}; and as a chunk: {error}") from error


def explain_chunk(session: Session, key: ChunkKey, output: Output) -> Status:
    """Show why a chunk is or is not served; return what a lookup finds."""
    explanation = session.store.explain(key)
    hit = explanation.hit
    found = {"status": hit.status.value, "tier": hit.tier, "nbytes": hit.nbytes, "reason": hit.reason}
    epochs = {"tenant_epoch": explanation.tenant_epoch, "model_epoch": explanation.model_epoch}
    output.record({"kind": "chunk", "content": key.content.hex(), **found, **epochs, "lines": explanation.lines})
    output.text(f"chunk {key}: {hit.status.value} {hit.tier or hit.reason}")
    for line in explanation.lines:
        output.text(f"  {line}")
    return hit.status
