"""What a process holds: memory, threads and open files, as the system counts them, and the leases of a store, as it counts them."""

from __future__ import annotations

import os
import re
import urllib.request
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Footprint:
    """A process at one moment."""

    resident_bytes: int
    threads: int
    files: int

    def exceeds(self, start: Footprint, slack_bytes: int, slack_threads: int, slack_files: int) -> list[str]:
        """Say by what it is more than it was, beyond a slack."""
        found = []
        if self.resident_bytes > start.resident_bytes + slack_bytes:
            found.append(f"{(self.resident_bytes - start.resident_bytes) >> 20} MiB more memory")
        if self.threads > start.threads + slack_threads:
            found.append(f"{self.threads} threads, {start.threads} at the start")
        if self.files > start.files + slack_files:
            found.append(f"{self.files} open files, {start.files} at the start")
        return found


def footprint(process_id: int) -> Footprint:
    """Measure a process of this user."""
    folder = Path("/proc") / str(process_id)
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return Footprint(int(status["VmRSS"].split()[0]) << 10, int(status["Threads"]), len(os.listdir(folder / "fd")))


def n_leases(pages: str) -> int:
    """Return how many chunks a store protects from eviction, as its metrics say."""
    with urllib.request.urlopen(f"{pages}/metrics", timeout=10) as answer:
        found = re.search(r"^larder_leases(?:{.*})? (\S+)$", answer.read().decode(), re.MULTILINE)
    assert found, f"{pages} says nothing of leases"
    return int(float(found[1]))
