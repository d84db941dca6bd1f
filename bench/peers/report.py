"""From the rounds' points to the tables of PEERS.md. Pure functions: no clock, no files."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar

MIB = 1 << 20
SIZES = (MIB, 8 * MIB, 32 * MIB)
JUDGED = (8 * MIB, 32 * MIB)
CPU_SIZE = 8 * MIB
OURS = "larder"


@dataclass(frozen=True)
class Point:
    """What one operation of one peer cost at one size; a figure that was not reported is NaN."""

    peer: str
    op: str
    nbytes: int
    mb_per_s: float
    p50_us: float
    p99_us: float
    cpu_s_per_gb: float


Figures = Mapping[tuple[str, str, int], Point]  # by peer, operation and size


@dataclass
class Results:
    """What all rounds brought: points per round, and why a peer has none."""

    rounds: list[list[Point]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Path:
    """A line of the table."""

    peer: str
    op: str
    label: str


@dataclass(frozen=True)
class Bar:
    """A demand on our path against a peer's, by size: its median time over ours is at least the limit."""

    ours: str
    peer: str
    op: str
    limits: Mapping[int, float]
    sign: ClassVar[str] = "≥"

    def ratio(self, ours: Point, theirs: Point) -> float:
        """Return how many times faster ours is."""
        return theirs.p50_us / ours.p50_us

    def is_met(self, ratio: float, nbytes: int) -> bool:
        """Say whether a ratio at a judged size meets the demand."""
        return ratio >= self.limits[nbytes]

    def demand(self) -> str:
        """Return the demand in words, per judged size where the sizes differ."""
        return f"{self.sign} {' / '.join(f'{limit:g}' for limit in dict.fromkeys(self.limits[n] for n in JUDGED))} x"


class LatencyBar(Bar):
    """A demand on a view's latency: our median time over theirs is at most the limit."""

    sign: ClassVar[str] = "p50 ≤"

    def ratio(self, ours: Point, theirs: Point) -> float:
        """Return our share of their time."""
        return ours.p50_us / theirs.p50_us

    def is_met(self, ratio: float, nbytes: int) -> bool:
        """Say whether a ratio at a judged size meets the demand."""
        return ratio <= self.limits[nbytes]


PATHS = (
    Path("reference", "memcpy", "memcpy, one thread (reference)"),
    Path("reference", "socket get", "bare TCP loop, 256 KiB buffers, get (reference)"),
    Path("reference", "socket put", "bare TCP loop, 256 KiB buffers, put (reference)"),
    Path(OURS, "shm.view", "**Larder shm, view**"),
    Path(OURS, "shm.get", "**Larder shm, get copied out**"),
    Path(OURS, "shm.put", "**Larder shm, put**"),
    Path(OURS, "tcp.get", "**Larder tcp, get**"),
    Path(OURS, "tcp.put", "**Larder tcp, put**"),
    Path(OURS, "grpc.get", "**Larder grpc, get**"),
    Path(OURS, "grpc.put", "**Larder grpc, put**"),
    Path(OURS, "redis.get", "**Larder Redis tier, get**"),
    Path(OURS, "redis.put", "**Larder Redis tier, put**"),
    Path("LMCache", "get", "LMCache server, get"),
    Path("LMCache", "put", "LMCache server, put then exists"),
    Path("Mooncake", "get", "Mooncake TCP, get_into a registered buffer"),
    Path("Mooncake", "put", "Mooncake TCP, put_from into used storage"),
    Path("redis-py", "get", "redis-py, GET one value"),
    Path("redis-py", "put", "redis-py, SET one value"),
    Path("redis-py", "put held", "redis-py, SET one value while one is kept in memory"),
    Path("Ray", "view", "Ray, ray.get view"),
    Path("Ray", "get", "Ray, ray.get copied out"),
    Path("Ray", "put", "Ray, ray.put"),
)


def same(limit: float) -> dict[int, float]:
    """Return one limit for every judged size."""
    return dict.fromkeys(JUDGED, limit)


BARS = (
    Bar("tcp.get", "LMCache", "get", same(1.25)),
    Bar("tcp.get", "Mooncake", "get", same(2.4)),
    Bar("tcp.get", "redis-py", "get", same(4)),
    Bar("tcp.put", "LMCache", "put", same(3.5)),
    Bar("tcp.put", "Mooncake", "put", same(2.2)),
    Bar("tcp.put", "redis-py", "put", same(9)),
    Bar("shm.get", "LMCache", "get", same(4)),
    Bar("shm.get", "Mooncake", "get", same(7)),
    LatencyBar("shm.view", "Ray", "view", same(0.5)),
    Bar("redis.get", "redis-py", "get", {8 * MIB: 2.3, 32 * MIB: 5}),
    Bar("redis.put", "redis-py", "put", same(3)),
)


def read_peer(lines: Iterable[str]) -> tuple[list[Point], dict[str, str]]:
    """Return the points and the versions in the JSON lines that a peer's program printed; other lines are its chatter."""
    points, versions = [], {}
    for line in lines:
        if line.startswith('{"peer"'):
            record = json.loads(line)
            if "versions" in record:
                versions[record["peer"]] = record["versions"]
            else:
                points.append(Point(**record))
    return points, versions


def read_rows(lines: Iterable[str]) -> list[Point]:
    """Return our points from benchmark rows, of which each holds one metric of one variant at one size."""
    found: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    for line in lines:
        row = json.loads(line)
        found[row["variant"], int(row["x"])][row["metric"]] = row["p50"]
    metrics = [f.name for f in fields(Point)][3:]
    return [Point(OURS, op, nbytes, *(got.get(metric, math.nan) for metric in metrics)) for (op, nbytes), got in found.items()]


def medians(rounds: Sequence[Sequence[Point]]) -> dict[tuple[str, str, int], Point]:
    """Return each figure's median over the rounds that have it."""
    groups: dict[tuple[str, str, int], list[Point]] = defaultdict(list)
    for point in (point for points in rounds for point in points):
        groups[point.peer, point.op, point.nbytes].append(point)
    names = [f.name for f in fields(Point)][3:]
    return {key: Point(*key, *(statistics.median(getattr(p, name) for p in points) for name in names)) for key, points in groups.items()}


def ratio(figures: Figures, bar: Bar, nbytes: int) -> float:
    """Return a bar's ratio, or NaN where either side was not measured."""
    ours, theirs = figures.get((OURS, bar.ours, nbytes)), figures.get((bar.peer, bar.op, nbytes))
    return bar.ratio(ours, theirs) if ours and theirs else math.nan


def milliseconds(microseconds: float) -> str:
    """Return a time in ms with three significant digits."""
    return f"{float(f'{microseconds / 1e3:.3g}'):g} ms"


def cell(point: Point | None) -> str:
    """Return throughput and median time, or the median time alone of a view, which moves no bytes."""
    if point is None:
        return "-"
    time = milliseconds(point.p50_us)
    return time if point.op.endswith("view") else f"{point.mb_per_s:.0f} ({time})"


def path_line(path: Path, figures: Figures, reasons: Mapping[str, str]) -> str:
    """Return one line of the table of paths."""
    points = [figures.get((path.peer, path.op, nbytes)) for nbytes in SIZES]
    if not any(points):
        return f"| {path.label} | not measured: {reasons.get(path.peer, 'no such figure was printed')} | | | |"
    cpu = figures.get((path.peer, path.op, CPU_SIZE))
    seconds = "-" if cpu is None or math.isnan(cpu.cpu_s_per_gb) or cpu.op.endswith("view") else f"{cpu.cpu_s_per_gb:.2f}"
    return f"| {path.label} | {' | '.join(cell(point) for point in points)} | {seconds} |"


def bar_line(bar: Bar, rounds: Sequence[Figures], overall: Figures, reasons: Mapping[str, str]) -> str:
    """Return one line of the table of bars: the ratio of medians, in brackets its lowest and highest of the rounds, and the verdict."""
    head = f"| {bar.ours} against {bar.peer} {bar.op} | {bar.demand()} |"
    if any(math.isnan(ratio(overall, bar, nbytes)) for nbytes in JUDGED):
        known = [f"{peer}: {reasons[peer]}" for peer in (OURS, bar.peer) if peer in reasons]
        return f"{head} not measured: {'; '.join(known) or 'no such figure was printed'} | | | |"
    cells = []
    for nbytes in SIZES:
        each = [r for r in (ratio(figures, bar, nbytes) for figures in rounds) if not math.isnan(r)]
        cells.append(f"{ratio(overall, bar, nbytes):.2f} ({min(each):.2f} to {max(each):.2f})" if each else "-")
    is_met = all(bar.is_met(ratio(overall, bar, nbytes), nbytes) for nbytes in JUDGED)
    return f"{head} {' | '.join(cells)} | {'holds' if is_met else '**does not hold**'} |"


def table(*heads: str) -> list[str]:
    """Return the first two lines of a Markdown table."""
    return ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]


def tables(results: Results) -> str:
    """Return both tables as Markdown."""
    overall, each = medians(results.rounds), [medians([points]) for points in results.rounds]
    paths = table("path", "1 MiB: MB/s (p50)", "8 MiB", "32 MiB", "CPU s/GB at 8 MiB")
    paths += [path_line(path, overall, results.reasons) for path in PATHS]
    bars = table("ours against theirs", "bar", "1 MiB", "8 MiB", "32 MiB", "verdict")
    bars += [bar_line(bar, each, overall, results.reasons) for bar in BARS]
    return "\n".join(["## Paths", "", *paths, "", "## Bars", "", BARS_TEXT, "", *bars, ""])


BARS_TEXT = """\
A ratio compares the median times of one operation: how many times faster ours is, and for a view its share of the peer's time. In brackets
are the lowest and highest ratio within one round. A bar holds if it holds at 8 and at 32 MiB."""

HEADER = """\
# Larder beside its peers

Written by `make bench-peers`; do not edit. Each program below ran {rounds} times, in turn, on loopback; a figure is the median of the
rounds. MB/s is 10^6 bytes per second over a whole measurement, p50 the median time of one operation, CPU the processor seconds of
client and server together per 10^9 bytes. A get lands in a reused buffer wherever the client allows it; a put is over when the
server has it. A measurement is at least 30 operations and 1 s, or 2 s, after a warm-up.

{facts}
"""


def page(results: Results, facts: Mapping[str, str]) -> str:
    """Return the whole of PEERS.md."""
    listed = [f"- {name}: {value}" for name, value in {**facts, **results.versions}.items()]
    partial = [f"- {peer}: {why}" for peer, why in results.reasons.items()]
    text = HEADER.format(rounds=len(results.rounds), facts="\n".join(listed)) + "\n" + tables(results)
    return text + ("\n## Not measured, wholly or in some round\n\n" + "\n".join(partial) + "\n" if partial else "")
