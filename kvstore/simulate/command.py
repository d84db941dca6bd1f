"""`larder simulate`: what another size, bandwidth, codec or policy would do for recorded or synthetic traffic."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvclient.cli.output import Number, output_of
from kvstore.core.errors import FormatError, InvalidInputError
from kvstore.core.units import format_nbytes, parse_nbytes
from kvstore.planners.cost import CostModel
from kvstore.planners.samples import SPLICE
from kvstore.simulate.replay import Outcome, simulate, stored_nbytes
from kvstore.simulate.scenario import CODEC, Scenario, describe
from kvstore.simulate.trace import Asked, TraceRequest, read_trace
from kvstore.simulate.zipf import Zipf

_CHANGES = ("memory=2x", "memory=0.5x", "eviction=lru")
_MOST_COSTS_NBYTES = 1 << 20
_EPILOG = """\
changes for --try, several at once with commas: memory, disk, redis (a size or 2x), memory_speed, disk_speed, redis_speed (bytes per
second or 2x), eviction, planner, codec_factor (of the bytes per token), patch_rows.

The trace is what a worker records with the setting worker.trace_file; kvstore/simulate/trace.py describes it. Without --costs, prefill
is taken to be a 7B model's on an A100 and links to be 10, 2 and 1 GB/s. Requests do not wait for each other, and decoded copies on the
device are left out, so times are those of an idle worker.
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `simulate` command."""
    parser = subparsers.add_parser(
        "simulate",
        help="replay a trace against other sizes, speeds and policies",
        description="Answer questions such as: what would twice the memory buy?",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("trace", nargs="?", type=Path, metavar="TRACE", help="a recorded trace")
    parser.add_argument("--synthetic", metavar="SPEC", help="instead of a trace: zipf, or zipf:requests=2000,passages=300,exponent=0.7,...")
    parser.add_argument("--try", dest="changes", action="append", metavar="CHANGE", help="one more row, such as memory=2x,eviction=lru")
    parser.add_argument("--memory", default="33%", metavar="SIZE", help="of the memory tier; %% of what is asked for again (%(default)s)")
    parser.add_argument("--disk", default="0", metavar="SIZE", help="of the disk tier; 0 for none (default)")
    parser.add_argument("--redis", default="0", metavar="SIZE", help="of a Redis tier; 0 for none (default)")
    parser.add_argument("--eviction", default="value", help="value, lru, lfu or arc")
    parser.add_argument("--planner", default="min_cost", help="a planner, as of larder up")
    parser.add_argument("--bytes-per-token", type=float, metavar="N", help="stored (default: as recorded, else 131072)")
    parser.add_argument("--patch-rows", type=int, default=4, metavar="N", help="rows of a loaded passage that are computed again")
    parser.add_argument("--costs", type=Path, metavar="FILE", help="costs that a worker measured: costs-*.json in its data directory")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Replay the trace as given, then once per change; print a row for each."""
    trace = _trace(args)
    given = _scenario(args, trace)
    scenarios = [given, *(given.changed(text) for text in args.changes or _CHANGES)]
    output = output_of(args)
    records = [_record(simulate(trace, scenario), scenario) for scenario in scenarios]
    output.text(f"{len(trace)} requests; {describe(given)}")
    output.rows(records, _columns(records))
    return 0


def _trace(args: argparse.Namespace) -> list[TraceRequest]:
    """Return the requests that the arguments name."""
    if (args.trace is None) == (args.synthetic is None):
        raise InvalidInputError("name a trace file, or --synthetic zipf; not both")
    trace = read_trace(args.trace) if args.trace else Zipf.parse(args.synthetic).trace()
    if not trace:
        raise InvalidInputError("the trace holds no request")
    return trace


def _scenario(args: argparse.Namespace, trace: Sequence[TraceRequest]) -> Scenario:
    """Return the setting that the arguments describe."""
    base = Scenario(
        eviction=args.eviction,
        planner=args.planner,
        patch_rows=args.patch_rows,
        bytes_per_token=args.bytes_per_token or recorded_bytes_per_token(trace) or Scenario.bytes_per_token,
    )
    if args.costs:
        costs = _read_costs(args.costs)
        base = replace(base, costs=costs, codec=_codec(costs))
    again = nbytes_asked_again(trace, base)
    return replace(base, memory=_size(args.memory, again), disk=_size(args.disk, again), redis=_size(args.redis, again))


def recorded_bytes_per_token(trace: Sequence[TraceRequest]) -> float | None:
    """Return the stored bytes per token of the passages whose size was recorded, or None."""
    known = {asked for request in trace for asked in request.passages if asked.nbytes}
    return sum(asked.nbytes for asked in known) / sum(asked.n_tokens for asked in known) if known else None


def nbytes_asked_again(trace: Sequence[TraceRequest], scenario: Scenario) -> int:
    """Return the stored bytes of all passages that are asked for more than once: more capacity than that buys nothing."""
    times = Counter(asked.key for request in trace for asked in request.passages)
    again: dict[str, Asked] = {asked.key: asked for request in trace for asked in request.passages if times[asked.key] > 1}
    return sum(stored_nbytes(asked, scenario) for asked in again.values())


def _size(text: str, whole: int) -> int:
    """Read a size, or a percentage of the whole; the smallest capacity that is there is a byte."""
    if not text.endswith("%"):
        return parse_nbytes(text)
    try:
        share = float(text[:-1]) / 100
        return max(1, int(whole * share)) if share > 0 else 0
    except (ValueError, OverflowError) as error:
        raise InvalidInputError(f"{text!r} is neither a size nor a percentage") from error


def _read_costs(path: Path) -> CostModel:
    """Read a cost model that a worker kept; raises FormatError for anything else."""
    with path.open("rb") as file:
        text = file.read(_MOST_COSTS_NBYTES + 1)
    try:
        if len(text) > _MOST_COSTS_NBYTES:
            raise FormatError(f"more than {_MOST_COSTS_NBYTES} B")
        return CostModel.from_json(json.loads(text))
    except (FormatError, ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not the costs of a worker: {error}") from error


def _codec(costs: CostModel) -> str:
    """Return the codec that the costs know: the one that is not the decoded form of a device."""
    known = [name.removeprefix("codec ") for name in costs.costs if name.startswith("codec ") and name != "codec decoded"]
    if not known or SPLICE not in costs.costs:
        raise InvalidInputError("the costs know no codec, or not what splicing takes")
    return known[0] if known else CODEC


def _record(outcome: Outcome, scenario: Scenario) -> dict[str, Any]:
    """Return one row for programs."""
    return {
        "label": outcome.label,
        "hit_share": outcome.hit_share,
        "loaded_share": outcome.loaded_share,
        "saved_s": outcome.saved_s,
        "mean_ttft_s": outcome.mean_ttft_s,
        "p95_ttft_s": outcome.p95_ttft_s,
        "read_nbytes": {tier.name: outcome.read_nbytes[tier.name] for tier in scenario.tiers},
        "written_nbytes": {tier.name: outcome.written_nbytes[tier.name] for tier in scenario.tiers},
        "requests": len(outcome.ttft_s),
        "setting": describe(scenario),
    }


def _columns(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the table that people read: shares in per cent of tokens, and two columns for each tier."""
    return {
        "setting": lambda r: r["label"],
        "hits": lambda r: Number(f"{100 * r['hit_share']:.1f} %"),
        "loaded": lambda r: Number(f"{100 * r['loaded_share']:.1f} %"),
        "prefill saved": lambda r: Number(f"{r['saved_s']:.1f} s"),
        "mean TTFT": lambda r: Number(f"{1e3 * r['mean_ttft_s']:.1f} ms"),
        "p95 TTFT": lambda r: Number(f"{1e3 * r['p95_ttft_s']:.1f} ms"),
        **dict(_tier_columns(records)),
    }


def _tier_columns(records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield what was read from and written to each tier of any row."""
    for tier in dict.fromkeys(name for record in records for name in record["read_nbytes"]):
        for verb, field in (("read", "read_nbytes"), ("written", "written_nbytes")):
            yield f"{tier} {verb}", lambda r, tier=tier, field=field: Number(format_nbytes(r[field].get(tier, 0)))
