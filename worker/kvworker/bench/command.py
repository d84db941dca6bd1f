"""`larder bench`: run a benchmark and print its rows."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace

from kvclient.cli.output import Output, output_of
from kvstore.core.discovery import find, known_names
from kvstore.core.errors import InvalidInputError, UnsupportedError
from kvstore.core.units import parse_nbytes
from kvworker.bench.benchmark import Asked, Benchmark
from kvworker.bench.rows import Row, append_csv

_PACKAGE = "kvworker.bench"


def run(args: argparse.Namespace) -> int:
    """Run one benchmark; print rows as they come, and append them to a CSV file if asked."""
    found = _find_benchmark(args.name)
    bench = found.quick() if args.quick else found()
    if args.sizes:
        bench = replace(bench, sizes=tuple(map(parse_nbytes, args.sizes.split(","))))  # type: ignore[type-var]
    output = output_of(args)
    rows = list(_shown(bench.run(Asked(args.model, args.examples)), output))
    bench.show(rows, output)
    if args.csv:
        append_csv(args.csv, rows)
    return 0


def _find_benchmark(name: str) -> type[Benchmark]:
    """Return the benchmark of that name; another name raises InvalidInputError with those that are known."""
    try:
        found: type[Benchmark] = find(_PACKAGE, name)
    except UnsupportedError as error:
        raise InvalidInputError(f"no benchmark {name!r}; known: {', '.join(known_names(_PACKAGE))}") from error
    return found


def _shown(rows: Iterable[Row], output: Output) -> Iterator[Row]:
    """Print each row as it comes, where programs read it."""
    for row in rows:
        output.record(asdict(row))
        yield row
