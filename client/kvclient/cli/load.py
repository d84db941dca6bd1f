"""`larder load`: ask at a fixed rate over what is ingested, and say how long answers took."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvclient import AsyncLarder
from kvclient.cli import exits
from kvclient.cli.options import common_options, count, per_second, seconds, tls_of
from kvclient.cli.output import Number, output_of
from kvclient.load.arrivals import Traffic
from kvclient.load.outcome import Outcomes
from kvclient.load.sending import Ask, Tenant, send
from kvclient.retry import Retry
from kvstore.core.errors import NotFoundError
from kvstore.core.tokens import read_tokens
from kvstore.core.units import format_nbytes

if TYPE_CHECKING:
    from kvclient.cli.plugins import Subparsers

_SHOWN_EVERY_S = 0.25
_MOST_PASSAGES = 100_000
_TIMES = (("first token", "ttft_s"), ("whole answer", "latency_s"), ("first token, from sending", "sent_ttft_s"))
COLUMNS: dict[str, Callable[[Any], object]] = {
    "": lambda r: r["what"],
    **{name: (lambda r, name=name: Number(f"{1000 * r[name]:,.1f} ms")) for name in ("p50", "p90", "p99", "max")},  # type: ignore[misc]
}
_TEXT = """\
Ask questions over the passages that are ingested, at random times that do not depend on the answers (an open loop). Waits count from when a
question was due, so a server that is slow is not spared the questions that come meanwhile."""


def register(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = subparsers.add_parser("load", parents=[common_options(60.0)], help="make load and measure answers", description=_TEXT)
    parser.add_argument("--rate", type=per_second, default=1.0, metavar="N", help="questions a second (default: %(default)g)")
    parser.add_argument("--duration", type=seconds, default=30.0, metavar="SECONDS", help="how long questions come (default: %(default)g)")
    parser.add_argument("--passages", type=count, default=4, metavar="N", help="passages of each question (default: %(default)s)")
    parser.add_argument("--zipf", type=float, default=0.8, help="exponent of their popularity, 0 (all alike) to 10 (default: %(default)g)")
    parser.add_argument("--source", default="", help="ask about this document only")
    parser.add_argument("--question", default="What is this about?", help="what is asked (default: %(default)r)")
    parser.add_argument("--max-tokens", type=count, default=8, metavar="N", help="tokens of an answer (default: %(default)s)")
    parser.add_argument("--tokens", type=Path, metavar="FILE", help='ask as every tenant of this file of lines "tenant token"')
    parser.add_argument("--in-flight", type=count, default=1024, metavar="N", help="questions that may be under way (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed asks the same (default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make the load; 1 where a request failed."""
    output, outcomes = output_of(args), Outcomes()
    elapsed_s = asyncio.run(_load(args, outcomes))
    record = outcomes.summary(elapsed_s)
    output.record({"kind": "load", "rate_per_s": args.rate, "seed": args.seed, **record})
    output.table([{"what": what, **record[name]} for what, name in _TIMES if record[name]], COLUMNS)
    output.text(say(record, args.rate))
    return exits.FAILED if record["errors"] else exits.OK


def say(record: dict[str, Any], rate_per_s: float) -> str:
    """Return what a person wants to know of a load beside its times."""
    asked, answered = record["requests"], record["answered"]
    lines = [f"{answered} of {asked} answered in {record['seconds']:.1f} s: {record['answered_per_s']:.2f} of {rate_per_s:g} a second"]
    n_prompt = record["tokens_loaded"] + record["tokens_recomputed"]
    share = f"{100 * record['tokens_loaded'] / n_prompt:.0f} % of prompt tokens loaded" if n_prompt else "no prompt tokens"
    lines.append(f"{format_nbytes(record['loaded_nbytes'])} loaded, {share}")
    lines += [f"{count} failed: {error}" for error, count in record["errors"].items()]
    if record["lateness_s"] > 0.01:
        late_ms = 1000 * record["lateness_s"]
        lines.append(f"this machine was busy and sent a question {late_ms:.0f} ms late; the first two rows count from when it was due")
    return "\n".join(lines)


async def _load(args: argparse.Namespace, outcomes: Outcomes) -> float:
    """Find passages, send everything, and return the seconds from the first question's time on; Ctrl-C ends it early."""
    async with _tenants(args) as tenants:
        n_passages = tuple(len(tenant.passage_ids) for tenant in tenants)
        traffic = Traffic(args.rate, args.duration, n_passages, args.passages, args.zipf, args.seed)
        ask = Ask(args.question, args.max_tokens, args.in_flight)
        began = time.perf_counter()
        with _live(outcomes, began, args) as show:
            showing = asyncio.create_task(_keep_showing(show))
            with suppress(asyncio.CancelledError):
                await send(traffic.arrivals(), tenants, ask, outcomes)
            showing.cancel()
        return time.perf_counter() - began


@asynccontextmanager
async def _tenants(args: argparse.Namespace) -> AsyncIterator[list[Tenant]]:
    """Connect as each tenant and list its passages; raises NotFoundError where one has none."""
    named = [(each.tenant, each.token) for each in read_tokens(args.tokens)] if args.tokens else [("", args.token)]
    tls, once = tls_of(args), Retry(attempts=1)  # what a retry mends would count as one slow answer
    clients = [AsyncLarder(args.address, token, timeout_s=args.timeout, tls=tls, retry=once) for _, token in named]
    try:
        tenants = []
        for (name, _), client in zip(named, clients, strict=True):
            passages = await client.passages(args.source, limit=_MOST_PASSAGES)
            if not passages:
                raise NotFoundError(f"tenant {name or 'of this token'} has no passages here; `larder ingest FILE` first")
            tenants.append(Tenant(name, client, [passage.id for passage in passages]))
        yield tenants
    finally:
        for client in clients:
            await client.close()


async def _keep_showing(show: Callable[[], None]) -> None:
    while True:
        show()
        await asyncio.sleep(_SHOWN_EVERY_S)


@contextmanager
def _live(outcomes: Outcomes, began: float, args: argparse.Namespace) -> Iterator[Callable[[], None]]:
    """Show how it goes while it does, on a terminal and where rich is installed; yields what draws it anew."""
    try:
        from rich.console import Console
        from rich.live import Live
    except ModuleNotFoundError:
        yield lambda: None
        return
    if not sys.stderr.isatty():
        yield lambda: None
        return
    with Live(console=Console(stderr=True), transient=True, auto_refresh=False) as live:
        yield lambda: live.update(_line(outcomes.summary(time.perf_counter() - began), args.duration), refresh=True)


def _line(record: dict[str, Any], duration_s: float) -> str:
    """Return the state of a load in one line."""
    times = ", ".join(f"{name} {1000 * value:,.0f} ms" for name, value in record["ttft_s"].items())
    failed = sum(record["errors"].values())
    left_s = max(0.0, duration_s - record["seconds"])
    return (
        f"{record['answered']} answered, {record['in_flight']} under way, {failed} failed; first token {times or 'none yet'}; "
        f"{format_nbytes(record['loaded_nbytes'])} loaded; {left_s:.0f} s to come"
    )
