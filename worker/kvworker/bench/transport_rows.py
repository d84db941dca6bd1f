"""From timings to rows, and from rows to the table that people read. Pure functions: no clock, no processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kvclient.cli.output import Columns, Number, Record
from kvstore.core.units import format_nbytes
from kvworker.bench.rows import Bench, Row
from kvworker.bench.transport_timing import Timing

Round = Mapping[str, Timing]  # what one round measured, by variant

LEVEL_NBYTES = 8 << 20  # a byte of a larger chunk should cost no more processor time than one of a chunk of this size
LANES = ("shm", "tcp", "grpc")
TIERS = ("redis", "disk")
BATCH = "batch.get"
SINGLES = "grpc.get one by one"
UNDER_BULK = " under bulk"  # behind a variant: the same beside a stream of large chunks

# How often each byte is copied from where it lies to where it is used, by both processes and by the system in between. The docstrings of
# the lanes and tiers say the same of their own side.
COPIES = {
    "memcpy": 1, "socket.get": 2, "socket.put": 2, "shm.view": 0, "shm.get": 1, "shm.put": 2, "tcp.get": 2, "tcp.put": 2, "disk.get": 1,
    "disk.put": 1, "redis.get": 3, "redis.put": 2, "grpc.get": 7, "grpc.put": 7,
}  # fmt: skip

_UNITS = {"mb_per_s": "MB/s", "p50_us": "us", "p99_us": "us", "cpu_s_per_gb": "s/GB", "p50_under_bulk_us": "us"}


def references_of(variant: str) -> dict[str, str]:
    """Return what a variant of ours is compared with: the metric's name and the other variant."""
    place, _, way = variant.partition(".")
    if variant.startswith(BATCH):
        return {"over_single_grpc": SINGLES}
    if way not in ("get", "put"):
        return {}
    if place in LANES:
        plain = {"over_memcpy": "memcpy"} | {f"over_{name}": f"{name}.{way}" for name in ("socket", "naive_protobuf", "redis_py")}
        return plain | ({"over_tcp": f"tcp.{way}"} if place == "grpc" else {})
    if place in TIERS:
        return {"over_memcpy": "memcpy"} | ({"over_redis_py": f"redis_py.{way}"} if place == "redis" else {})
    return {}


def ratios(variant: str, measured: Round) -> dict[str, float]:
    """Return how many times faster a variant was than each of its references in the same round, by median times."""
    ours = measured[variant].p50_s
    return {metric: measured[name].p50_s / ours for metric, name in references_of(variant).items() if name in measured}


def latency_shares(variant: str, measured: Round) -> dict[str, float]:
    """Return a small get's time over that of an empty call, and under a bulk stream over its idle time."""
    shares = {}
    if variant == "grpc.get" and "grpc.empty" in measured:
        shares["over_empty"] = measured[variant].p50_s / measured["grpc.empty"].p50_s
    if busy := measured.get(variant + UNDER_BULK):
        shares["p50_under_bulk_us"] = busy.p50_s * 1e6
        shares["over_idle"] = busy.p50_s / measured[variant].p50_s
    return shares


def figures(variant: str, nbytes: int, measured: Round, level: Round) -> dict[str, float]:
    """Return every metric of a variant in one round; what moves no bytes has times only.

    `level` is a round at `LEVEL_NBYTES`, or empty: of processor time, which is steadier than time, a ratio may cross rounds.
    """
    timing = measured[variant]
    times = {"p50_us": timing.p50_s * 1e6, "p99_us": timing.p99_s * 1e6}
    if variant in ("shm.view", "grpc.empty"):
        return times
    speed = {"mb_per_s": timing.mb_per_s(nbytes), **times, "cpu_s_per_gb": timing.cpu_s_per_gb(nbytes)}
    if variant in level:
        speed["cpu_over_8_mib"] = speed["cpu_s_per_gb"] / level[variant].cpu_s_per_gb(LEVEL_NBYTES)
    return speed | ratios(variant, measured) | latency_shares(variant, measured)


def rows_of(bench: Bench, nbytes: int, rounds: Sequence[Round], level: Round | None = None) -> Iterator[Row]:
    """Yield the rows of one size; a row's percentiles are those of its rounds."""
    for variant in rounds[0]:
        if variant.endswith(UNDER_BULK):
            continue
        each = [figures(variant, nbytes, measured, level or {}) for measured in rounds]
        for metric in each[0]:
            yield bench.row(variant, metric, _UNITS.get(metric, "ratio"), nbytes, [found[metric] for found in each])


def lines(rows: Sequence[Row]) -> list[Record]:
    """Return one record per variant and size, in the order of the rows, with the medians of its metrics."""
    records: dict[tuple[str, float], dict[str, Any]] = {}
    for row in rows:
        records.setdefault((row.variant, row.x), {"variant": row.variant, "x": row.x})[row.metric] = row.p50
    return list(records.values())


def _figure(metric: str, form: str) -> Callable[[Record], Number]:
    """Return a cell of the table; empty where a variant has no such metric."""
    return lambda record: Number(format(record[metric], form) if metric in record else "")


def _also(record: Record) -> str:
    """Say in words what only few variants have."""
    said = {
        "over_tcp": "{:.2f} x tcp",
        "over_single_grpc": "{:.1f} x one by one",
        "over_empty": "takes {:.2f} of an empty call",
        "p50_under_bulk_us": "{:.0f} us beside a bulk stream",
        "cpu_over_8_mib": "CPU {:.2f} of 8 MiB",
        "over_idle": "which is {:.1f} of idle",
    }
    return ", ".join(text.format(record[metric]) for metric, text in said.items() if metric in record)


COLUMNS: Columns = {
    "size": lambda r: Number(format_nbytes(r["x"])),
    "variant": lambda r: r["variant"],
    "MB/s": _figure("mb_per_s", ".0f"),
    "p50 us": _figure("p50_us", ".4g"),
    "p99 us": _figure("p99_us", ".4g"),
    "CPU s/GB": _figure("cpu_s_per_gb", ".3f"),
    "copies": lambda r: Number(COPIES.get(r["variant"], "")),
    "x memcpy": _figure("over_memcpy", ".2f"),
    "x socket": _figure("over_socket", ".2f"),
    "x protobuf": _figure("over_naive_protobuf", ".2f"),
    "x redis-py": _figure("over_redis_py", ".2f"),
    "also": _also,
}
NOTE = """\
Medians of rounds in which ours and references take turns. MB/s is 10^6 bytes per second, CPU counts client and server. "x" is how many
times faster by median time. copies: from where a byte lies to where it is used, the system's included. A get is over when every part is
verified and in this process's memory, a put when the store has published it. redis and disk are the tiers by themselves; the disk's records
are in the page cache and not synced. redis_py moves one value through the same Unix socket."""
