"""What a process holds: memory, threads and open files, as the system counts them, and what a store says of itself."""

from __future__ import annotations

import os
import re
import urllib.request
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.threads import threads_of


@dataclass(frozen=True)
class Footprint:
    """A process at one moment.

    Parameters
    ----------
    nbytes : int
        Memory of its own; what it has mapped of files is the system's to take back.
    threads, files : Counter
        By pool, and by kind.
    """

    nbytes: int
    threads: Counter[str]
    files: Counter[str]

    def exceeds(self, start: Footprint, slack_bytes: int, slack_files: int, pools: Mapping[str, int]) -> list[str]:
        """Say by what it is more than it was: of threads, what a pool has beyond its size, and any other one beyond those of the start."""
        found = [
            f"{count} threads {name}, at most {most}"
            for name, count in self.threads.items()
            if count > (most := pools.get(name, start.threads[name]))
        ]
        if self.nbytes > start.nbytes + slack_bytes:
            found.append(f"{(self.nbytes - start.nbytes) >> 20} MiB more memory")
        if self.files.total() > start.files.total() + slack_files:
            found.append(f"open files {dict(self.files)}, at the start {dict(start.files)}")
        return found

    def __str__(self) -> str:
        threads = " ".join(f"{name} {count}" for name, count in sorted(self.threads.items()))
        return f"{self.nbytes >> 20} MiB, {self.files.total()} files, {self.threads.total()} threads: {threads}"


def footprint(process_id: int) -> Footprint:
    """Measure a process of this user."""
    folder = Path("/proc") / str(process_id)
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    own = sum(int(status[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem"))
    return Footprint(own, threads_of(process_id), _files_of(folder / "fd"))


def reading(pages: str, metric: str) -> int:
    """Return what a server's metrics say, of the whole of a metric, or of the labels that stand behind its name."""
    with urllib.request.urlopen(f"{pages}/metrics", timeout=10) as answer:
        found = re.search(rf"^{re.escape(metric)}(?:{{.*}})? (\S+)$", answer.read().decode(), re.MULTILINE)
    assert found, f"{pages} says nothing of {metric}"
    return int(float(found[1]))


def _files_of(folder: Path) -> Counter[str]:
    """Count descriptors by what is behind them: "socket", "pipe", "anon_inode", or "file"."""
    found: Counter[str] = Counter()
    for name in os.listdir(folder):
        try:
            kind, colon, _ = os.readlink(folder / name).partition(":")
        except FileNotFoundError:
            continue  # closed meanwhile
        found[kind if colon and not kind.startswith("/") else "file"] += 1
    return found
