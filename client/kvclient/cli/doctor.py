"""`larder doctor`: what works here, what does not, and what to do about it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from kvclient.cli import exits
from kvclient.cli.checks import Finding, check_clock, check_disk, check_extras, check_gpu, check_python
from kvclient.cli.options import Session, common_options
from kvclient.cli.output import output_of
from kvclient.cli.progress import waiting
from kvstore.core.errors import AuthError, ForbiddenError, KVError, UnsupportedError
from kvstore.core.units import format_nbytes

if TYPE_CHECKING:
    from kvclient.cli.plugins import Subparsers

COLUMNS: dict[str, Callable[[Any], object]] = {
    "": lambda r: r["state"],
    "check": lambda r: r["check"],
    "found": lambda r: r["found"],
    "what to do": lambda r: r["advice"],
}


def register(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = subparsers.add_parser("doctor", parents=[common_options(5.0)], help="check this machine and the server")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run every check; 1 where one of them fails."""
    output = output_of(args)
    with waiting("checking"):
        findings = [check_python(), *check_extras(), check_disk(), check_clock(), check_gpu(), *check_server(args)]
    output.rows([vars(finding) for finding in findings], COLUMNS)
    return exits.FAILED if any(finding.state == "fail" for finding in findings) else exits.OK


def check_server(args: argparse.Namespace) -> Iterator[Finding]:
    """Check the token, then whether the server answers, then what it serves."""
    try:
        session = Session(args)
    except KVError as error:
        yield Finding("token", "fail", str(error), "set LARDER_TOKEN to a token of the server's tokens file")
        return
    yield Finding("token", "ok", "found")
    with session:
        try:
            found = f"{session.larder.address} answers in {1000 * session.larder.ping():.1f} ms"
        except KVError as error:
            yield Finding("server", "fail", str(error), "start one with `larder up`, or set LARDER_ADDRESS")
            return
        yield Finding("server", "ok", found)
        yield check_worker(session)
        yield from check_store(session)


def check_worker(session: Session) -> Finding:
    """Check that a worker serves at the address, as this token's tenant."""
    try:
        info = session.larder.info()
    except UnsupportedError:
        return Finding("worker", "warn", "the server is a store without a worker", "set LARDER_ADDRESS to a worker to ingest and ask")
    except AuthError as error:
        return Finding("worker", "fail", str(error), "set LARDER_TOKEN to a token of the server's tokens file")
    except KVError as error:
        return Finding("worker", "fail", str(error), "read the worker's log")
    return Finding("worker", "ok", f"{info.model} on {info.device}, codec {info.codec}, policy {info.policy}, planner {info.planner}")


def check_store(session: Session) -> Iterator[Finding]:
    """Check the store and each of its tiers, Redis among them."""
    try:
        stats = session.store.stats()
    except ForbiddenError:
        yield Finding("store", "ok", "answers; what its tiers hold is shown to tokens with the role admin")
        return
    except KVError as error:
        yield Finding("store", "fail", str(error), "start the store that the worker names, or read its log")
        return
    for tier in stats.tiers:
        use = f"{format_nbytes(tier.used_bytes)} in {tier.entries} chunks"
        if tier.is_available:
            yield Finding(f"tier {tier.name}", "ok", use)
        else:
            advice = "chunks there are computed again until it is back; check that its server runs and can be reached"
            yield Finding(f"tier {tier.name}", "warn", "down", advice)
    if not any(tier.name == "redis" for tier in stats.tiers):
        yield Finding("tier redis", "ok", "not used")
